//! The wall clock and the random generator, as values.

use std::time::SystemTime;

use anteroom_proto::time::UnixMillis;

/// Now, by the wall clock. A clock before 1970 counts as 1970.
#[must_use]
pub fn now() -> UnixMillis {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    UnixMillis(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

/// The system has no random bytes to give.
#[derive(Debug, thiserror::Error)]
#[error("the system gives no random bytes: {0}")]
pub struct RandomError(getrandom::Error);

/// Bytes from the system's cryptographic random generator.
///
/// # Errors
/// [`RandomError`] when the system has none, which no running Linux ever says.
pub fn random<const N: usize>() -> Result<[u8; N], RandomError> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(RandomError)?;
    Ok(bytes)
}
