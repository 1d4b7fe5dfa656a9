//! Sockets, links and packet filters of the machine.
