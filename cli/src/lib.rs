//! The operator's command line of Anteroom.
