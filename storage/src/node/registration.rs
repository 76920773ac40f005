//! How a data node enters the cluster, at its start and whenever the cluster has lost its trust in the disk.
//!
//! The node says what its disk holds of every chunk. An answer with the incarnation it had means that the disk missed
//! nothing it answered for. Any other incarnation means that the disk was empty, rolled back to an earlier state, or is
//! suspect: of it counts only what it proved to hold whole, and the answer names those chunks. All others are put aside,
//! before the identity changes, so that a stop in between repeats it.

use std::{
    collections::BTreeSet,
    sync::Arc,
    time::{Duration, Instant},
};

use hypertide_proto::{
    error::Code,
    ids::{ChunkId, ClusterId, Csn, Rid},
    wire,
};

use super::{AccessClient, DataNode, RETRY_PAUSE, heartbeat};
use crate::{
    Error,
    tables::{Identity, Member},
};

/// How long one round over the access nodes may take before the node says that none answers.
const REGISTER_TIMEOUT: Duration = Duration::from_secs(10);

impl DataNode {
    /// Registers and saves what the cluster gave; repeated until an answer comes. An error is a refusal.
    pub(super) async fn register(
        &self,
        adopter: Option<ClusterId>,
        name: &str,
    ) -> Result<(), Error> {
        let identity = self.store.identity();
        let member = identity.member.as_ref();
        let reply = self.ask_to_register(&identity, name).await?;
        let cluster = wire::cluster(&reply.cluster)?;
        let rid: Rid = wire::required(reply.rid, "rid")?.into();
        if let Some(expected) = adopter.or(member.map(|member| member.cluster)) {
            wire::check_cluster(&reply.cluster, expected)?;
        }
        if let Some(member) = member {
            if member.rid.node != rid.node {
                let (own, given) = (member.rid, rid);
                let text = format!("the cluster took data node {own} for {given}");
                return Err(Error::Identity(text));
            }
            if member.rid != rid {
                let kept = reply.kept.iter().copied().map(ChunkId).collect();
                self.put_aside((member.rid, rid), Csn(reply.csn), kept).await?;
            }
        }
        let access: Vec<String> = reply.access.into_iter().map(|member| member.rpc).collect();
        self.access.learn(access);
        let member = Some(Member { cluster, rid, name: reply.name });
        self.save(Identity { member, access: self.access.addresses(), ..identity }).await
    }

    async fn ask_to_register(
        &self,
        identity: &Identity,
        name: &str,
    ) -> Result<wire::meta::RegisterReply, Error> {
        let member = identity.member.as_ref();
        let request = wire::meta::RegisterRequest {
            cluster: member.map(|member| member.cluster.0.to_vec().into()).unwrap_or_default(),
            name: member.map_or(name, |member| member.name.as_str()).to_owned(),
            disk: identity.disk.0.to_vec().into(),
            rid: member.map(|member| member.rid.into()),
            rpc: self.addresses.0.clone(),
            http: self.addresses.1.clone(),
            progress: self.store.report(&[]).iter().map(heartbeat::progress).collect(),
            damaged: self.store.damaged().into_iter().map(|chunk| chunk.0).collect(),
        };
        loop {
            let deadline = Instant::now() + REGISTER_TIMEOUT;
            let request = request.clone();
            let ask = self.access.ask(deadline, move |mut client: AccessClient| {
                let request = request.clone();
                async move { client.register(request).await.map(tonic::Response::into_inner) }
            });
            match ask.await {
                Ok(reply) => return Ok(reply),
                Err(error) if refuses(error.code) => return Err(error.into()),
                Err(error) => tracing::info!("register at an access node: {error}"),
            }
            tokio::time::sleep(RETRY_PAUSE).await;
        }
    }

    /// Takes out of use what was written under another incarnation, but for the chunks that were proven to be whole.
    async fn put_aside(
        &self,
        (old, new): (Rid, Rid),
        csn: Csn,
        kept: BTreeSet<ChunkId>,
    ) -> Result<(), Error> {
        tracing::warn!(
            "this disk was {old} and is {new} now: it keeps {} chunks, and the others are put aside",
            kept.len()
        );
        let store = Arc::clone(&self.store);
        let work = move || store.put_aside(&old.to_string(), csn, &kept);
        let done = tokio::task::spawn_blocking(work).await;
        let (chunks, place) = done.map_err(|error| Error::Disk {
            action: "put the chunks of an earlier incarnation aside".into(),
            source: error.into(),
        })??;
        if chunks > 0 {
            tracing::warn!("{chunks} chunk files of {old} were put aside in {}", place.display());
        }
        Ok(())
    }
}

/// Whether an error of registration is an answer that no repetition changes.
fn refuses(code: Code) -> bool {
    matches!(code, Code::Invalid | Code::WrongNode | Code::NotFound | Code::Version)
}
