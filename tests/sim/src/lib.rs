//! The packet engine on a simulated network with a virtual clock.
