//! The relay as gateways meet it: a real one, over QUIC on loopback.

mod carried;
mod doors;
mod hostile;
mod measured;
mod support;
