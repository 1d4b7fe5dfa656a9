//! The worker thread around the engine, and the handle to it.
