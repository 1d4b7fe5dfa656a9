//! The controller service of Anteroom.
