//! Finding a cluster: by its local directory, by addresses, or at the default ports.

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use futures::{FutureExt, StreamExt, future::BoxFuture, stream::FuturesUnordered};
use hypertide_proto::{
    client::Channels,
    error::{Code, RpcError},
    wire::meta::{
        ChangeMemberReply, ChangeMemberRequest, IdentityReply, IdentityRequest, StatusReply,
        StatusRequest, meta_client::MetaClient,
    },
};
use tonic::{Response, Status, transport::Channel};

use crate::{
    cluster::ports::Ports,
    endpoints::{Endpoints, Role},
};

/// How long one access node may take to answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);
/// Pause before the next access node is asked for a change.
const RETRY_PAUSE: Duration = Duration::from_millis(250);
/// Access nodes looked for at the default ports.
const DEFAULT_NODES: u16 = 3;

/// Options of verbs that talk to a cluster.
#[derive(Clone, Debug, Default, clap::Args)]
pub(crate) struct Target {
    /// Directory of a local cluster or of `dev`.
    #[arg(long, env = "HYPERTIDE_DIR")]
    pub(crate) dir: Option<PathBuf>,
    /// Internal gRPC addresses of access nodes, comma-separated [default: the default ports of this machine].
    #[arg(long, env = "HYPERTIDE_ACCESS", value_name = "ADDR,...", value_delimiter = ',')]
    pub(crate) access: Vec<String>,
}

impl Target {
    /// Internal gRPC addresses of the access nodes.
    pub(crate) fn access(&self) -> anyhow::Result<Vec<String>> {
        if !self.access.is_empty() {
            return Ok(self.access.clone());
        }
        let Some(dir) = &self.dir else {
            let ports = Ports { base: Ports::BASE_DEFAULT };
            return (0..DEFAULT_NODES).map(|at| ports.rpc(at)).collect();
        };
        let endpoints = Endpoints::read(dir)?
            .with_context(|| format!("{} holds no cluster: no endpoints.json", dir.display()))?;
        let access = endpoints.nodes.into_iter().filter(|node| node.role == Role::Access);
        Ok(access.map(|node| node.rpc).collect())
    }

    /// The cluster as an access node sees it; one that follows a leader is preferred.
    pub(crate) async fn status(&self) -> anyhow::Result<StatusReply> {
        let mut blind = None;
        let mut answers = ask_all(self.access()?, |mut client| {
            async move { client.status(StatusRequest::default()).await.map(Response::into_inner) }
                .boxed()
        });
        let mut last = None;
        while let Some(answer) = answers.next().await {
            match answer {
                Ok(status) if !status.leader.is_empty() => return Ok(status),
                Ok(status) => blind = Some(status),
                Err(error) => last = Some(error),
            }
        }
        blind.map(Ok).unwrap_or_else(|| no_answer(last))
    }

    /// Changes the access nodes. Any of them passes the request on to the leader; while there is none, all of them are
    /// asked again and again.
    pub(crate) async fn change_member(
        &self,
        request: ChangeMemberRequest,
        limit: Duration,
    ) -> anyhow::Result<ChangeMemberReply> {
        let (channels, deadline) = (Channels::default(), Instant::now() + limit);
        let addresses = self.access()?;
        let mut last = None;
        for address in addresses.iter().cycle() {
            let mut client = channels.meta(address)?;
            let asked = client.change_member(request.clone());
            let left = deadline.saturating_duration_since(Instant::now());
            let Ok(answer) = tokio::time::timeout(left, asked).await else { break };
            let error = match answer {
                Ok(reply) => return Ok(reply.into_inner()),
                Err(status) => RpcError::from(status),
            };
            if !matches!(error.code, Code::Unavailable | Code::NotLeader) {
                bail!("{}", error.message);
            }
            last = Some(anyhow::anyhow!("{address}: {}", error.message));
            tokio::time::sleep(RETRY_PAUSE).await;
        }
        no_answer(last)
    }

    /// The first access node that answers, with its addresses.
    pub(crate) async fn identity(&self) -> anyhow::Result<IdentityReply> {
        let mut answers = ask_all(self.access()?, |mut client| {
            async move { client.identity(IdentityRequest::default()).await.map(Response::into_inner) }
                .boxed()
        });
        let mut last = None;
        while let Some(answer) = answers.next().await {
            match answer {
                Ok(identity) => return Ok(identity),
                Err(error) => last = Some(error),
            }
        }
        no_answer(last)
    }
}

/// Asks all at once: one that hangs must not hold up the answer of another.
fn ask_all<T, F>(
    addresses: Vec<String>,
    ask: F,
) -> FuturesUnordered<BoxFuture<'static, anyhow::Result<T>>>
where
    T: Send + 'static,
    F: Fn(MetaClient<Channel>) -> BoxFuture<'static, Result<T, Status>>,
{
    let channels = Channels::default();
    let answer = |address: String| match channels.meta(&address) {
        Err(error) => async { Err(anyhow::Error::new(error)) }.boxed(),
        Ok(client) => {
            let answer = tokio::time::timeout(ANSWER_LIMIT, ask(client));
            async move {
                let answer = answer.await.with_context(|| format!("{address} does not answer"))?;
                answer.map_err(|status| anyhow::anyhow!("{address}: {}", status.message()))
            }
            .boxed()
        }
    };
    addresses.into_iter().map(answer).collect()
}

fn no_answer<T>(last: Option<anyhow::Error>) -> anyhow::Result<T> {
    match last {
        Some(error) => Err(error.context("no access node answers")),
        None => bail!("no access node is known"),
    }
}
