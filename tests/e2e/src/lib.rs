//! End-to-end tests of Anteroom with the real programs in network namespaces.
