//! The gateway appliance of Anteroom.
