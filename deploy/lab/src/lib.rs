//! A hospital in network namespaces: a library for tests, a command for people.
//!
//! Everything lives in a private world that needs no root ([`namespace`]): hosts, cables and switches ([`topology`]),
//! networks that misbehave ([`wan`]), clinical traffic by programs that others wrote ([`clinical`]), an intruder ([`scan`]), a capture on the campus
//! ([`capture`]), and Anteroom's own programs, used as an operator would ([`programs`]).

pub mod anteroom;
pub mod capture;
pub mod clinical;
pub mod clocks;
pub mod figures;
pub mod hospital;
pub mod namespace;
pub mod order;
pub mod outages;
pub mod packet;
pub mod ping;
pub mod process;
pub mod programs;
pub mod relay;
pub mod scan;
pub mod session;
pub mod soak;
pub mod stall;
pub mod story;
pub mod stream;
pub mod topology;
pub mod wait;
pub mod wan;
pub mod weeks;
