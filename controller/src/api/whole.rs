//! Changes that are made whole, whether or not the caller stays for the answer.

use super::failure::Failure;
use crate::change::ChangeError;

/// Makes a change on a task of its own: a caller that goes away, or a time-out, doesn't stop it half-way between
/// the store and what is in memory. `field` is what the answer names where the change ends badly.
pub(super) async fn make<T: Send + 'static>(
    field: &str,
    change: impl Future<Output = Result<T, ChangeError>> + Send + 'static,
) -> Result<T, Failure> {
    match tokio::spawn(change).await {
        Ok(changed) => Ok(changed?),
        Err(error) => {
            tracing::error!(%error, "a change ended badly");
            Err(Failure::invalid(format!(
                "{field}: it can't be worked on; the controller's log says more"
            )))
        }
    }
}
