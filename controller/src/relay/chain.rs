//! How a relay that is no controller follows the authority chain: gateways bring it.
//!
//! Each gateway says which document is the newest that it holds. Where the relay's is older, it asks for what lies
//! between, follows the chain from the document that it was given at its making, and keeps it. Whoever brings
//! documents can withhold newer ones, but neither make them up nor take one back.

use std::path::PathBuf;
use std::sync::Arc;

use anteroom_proto::authority::{Authority, AuthorityChain};
use anteroom_proto::cbor;
use anteroom_proto::cose::Signed;
use anteroom_proto::key::Hash;
use anteroom_proto::relay::{FromRelay, Refusal, RefusalCode, ToRelay};
use tokio::task::spawn_blocking;

use super::{Reader, Service, Writer, protocol};
use crate::directory::Directory;

/// What a relay follows the chain by.
#[derive(Debug)]
pub(super) struct Following {
    /// Hash of the first document.
    pub(super) pin: Hash,
    /// Where the chain is kept.
    pub(super) directory: Directory,
    pub(super) file: PathBuf,
}

impl Service {
    /// The authority chain, once it is as new as the gateway's, where that can be had from it.
    pub(super) async fn catch_up(
        self: &Arc<Self>,
        wanted: u64,
        reader: &mut Reader,
        writer: &mut Writer,
    ) -> Result<Arc<AuthorityChain>, Refusal> {
        loop {
            let held = self.chain.load_full();
            let after = held.as_ref().map_or(0, |chain| chain.newest().number);
            let following = match (held, &self.following) {
                (Some(chain), None) => return Ok(chain),
                (Some(chain), Some(_)) if after >= wanted => return Ok(chain),
                (_, Some(following)) => following,
                (None, None) => {
                    let message = "no operator has claimed this controller yet";
                    return Err(Refusal::new(RefusalCode::Busy, message));
                }
            };
            if writer.send(&FromRelay::AuthorityWanted { after }).await.is_err() {
                return Err(protocol("the stream ended"));
            }
            let documents = match reader.next().await {
                Ok(Some(ToRelay::Authority(documents))) => documents,
                Ok(_) => return Err(protocol("authority documents were asked for")),
                Err(error) => return Err(protocol(error.to_string())),
            };
            self.extend(following, after, &documents).await?;
        }
    }

    /// Takes `documents`, which follow number `after`.
    async fn extend(
        self: &Arc<Self>,
        following: &Following,
        after: u64,
        documents: &[Signed<Authority>],
    ) -> Result<(), Refusal> {
        let refused = |message: String| Refusal::new(RefusalCode::Authority, message);
        if documents.is_empty() {
            return Err(refused(format!(
                "there is no authority document after {after}, as it seems"
            )));
        }
        let extending = self.extending.clone().lock_owned().await;
        let held = self.chain.load_full();
        let number = held.as_ref().map_or(0, |chain| chain.newest().number);
        // Another gateway may have brought some of them meanwhile.
        let known = usize::try_from(number.saturating_sub(after)).unwrap_or(usize::MAX);
        let Some(new) = documents.get(known..).filter(|new| !new.is_empty()) else {
            return Ok(());
        };
        let chain = match held {
            None => AuthorityChain::follow(following.pin, new),
            Some(held) => {
                let mut chain = AuthorityChain::clone(&held);
                new.iter().try_for_each(|document| chain.extend(document)).map(|()| chain)
            }
        };
        let chain = chain.map_err(|error| refused(error.to_string()))?;
        let number = chain.newest().number;
        let bytes = cbor::encode(&chain.to_signed());
        tracing::info!(number, "authority");
        self.set_authority(Arc::new(chain));
        let (directory, file) = (following.directory.clone(), following.file.clone());
        // Whoever brought it may be gone before it is on disk: the next documents wait for that all the same.
        let kept = spawn_blocking(move || {
            let kept = directory.replace(&file, &bytes);
            drop(extending);
            kept
        });
        if let Ok(Err(error)) = kept.await {
            // It is as good without a copy on disk; after a restart somebody brings it again.
            tracing::error!(%error, "the authority chain can't be kept");
        }
        Ok(())
    }
}
