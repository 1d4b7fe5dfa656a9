//! A hospital in network namespaces: a library for tests, a command for people.
