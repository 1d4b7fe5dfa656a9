//! Tasks that end with whoever holds them.

use tokio::task::JoinHandle;

/// Ends its task when it is dropped.
pub(crate) struct Task(pub(crate) JoinHandle<()>);

impl Task {
    /// Ends it, and waits until it has: after a drop it may still be at work for a moment, on another thread.
    pub(crate) async fn end(&mut self) {
        self.0.abort();
        let _ = (&mut self.0).await;
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}
