use std::{error::Error, fmt, time::Duration};

use aws_sdk_servicediscovery::{
    Client,
    error::{ProvideErrorMetadata, SdkError},
    types::HealthStatusFilter,
};
use rand::{SeedableRng, rngs::SmallRng};
use tokio::time::{Instant, sleep_until, timeout};

use super::instances::{self, NoAddress, Reading};
use crate::{
    endpoint::Target,
    random::{entropy, random_part},
};

/// What is asked for.
#[derive(Clone)]
pub(super) struct Wanted {
    pub(super) namespace: String,
    pub(super) service: String,
    pub(super) health: HealthStatusFilter,
    pub(super) attributes: Vec<(String, String)>,
}

/// The client that asks.
#[derive(Clone)]
pub(super) enum Clients {
    Given(Client),
    /// Made of the environment, when it is needed.
    #[cfg(feature = "cloud-map-rustls")]
    OfEnv,
}

/// Asks for the instances of a service, again and again.
pub(super) struct Ask {
    clients: Clients,
    client: Option<Client>,
    wanted: Wanted,
    reading: Reading,
    every: Duration,
    last: Option<Last>,
    /// How often in a row the answer was that there are too many requests.
    throttled: u32,
    /// When to ask again.
    due: Option<Instant>,
    rng: SmallRng,
}

/// The last answer.
struct Last {
    targets: Vec<Target>,
    revision: Option<i64>,
    /// How often it was taken for true by its revision alone.
    trusted: u32,
}

/// Why there is no answer.
#[derive(Debug)]
pub(super) struct Failed {
    text: String,
    /// Whether there are too many requests.
    is_throttled: bool,
}

impl Ask {
    pub(super) fn new(clients: Clients, wanted: Wanted, reading: Reading, every: Duration) -> Self {
        Self {
            clients,
            client: None,
            wanted,
            reading,
            every,
            last: None,
            throttled: 0,
            due: None,
            rng: SmallRng::seed_from_u64(entropy()),
        }
    }

    /// Waits until it is time to ask again, and asks.
    pub(super) async fn next(&mut self) -> Result<Vec<Target>, Failed> {
        if let Some(due) = self.due.take() {
            sleep_until(due).await;
        }
        let slow = || Failed::of(format!("no answer within {LONGEST_ANSWER:?}"));
        let asked = timeout(LONGEST_ANSWER, self.ask()).await;
        let answer = asked.unwrap_or_else(|_| Err(slow()));
        let is_throttled = answer.as_ref().is_err_and(|failed| failed.is_throttled);
        self.throttled = if is_throttled { self.throttled + 1 } else { 0 };
        if answer.is_err() {
            // Whatever it was, the next answer is a whole one.
            self.last = None;
        }
        if answer.is_ok() || is_throttled {
            let pause = self.every.saturating_mul(1 << self.throttled.min(6));
            let pause = pause.saturating_add(random_part(pause / 10, &mut self.rng));
            self.due = Instant::now().checked_add(pause);
        }
        answer
    }

    async fn ask(&mut self) -> Result<Vec<Target>, Failed> {
        let client = match &self.client {
            Some(client) => client.clone(),
            None => self.client.insert(self.clients.client().await).clone(),
        };
        if let Some(last) = &mut self.last {
            let revision = client.discover_instances_revision();
            let revision = revision.namespace_name(&self.wanted.namespace);
            let revision = revision.service_name(&self.wanted.service).send().await?;
            let is_same = revision.instances_revision().is_some()
                && revision.instances_revision() == last.revision;
            if is_same && last.trusted < MOST_TRUSTED {
                last.trusted += 1;
                return Ok(last.targets.clone());
            }
        }
        let answer = self.wanted.request(&client).send().await?;
        let all = answer.instances().iter();
        let instances = all.filter_map(|one| Some((one.instance_id()?, one.attributes()?)));
        let targets = instances::targets(instances, &self.reading)?;
        self.last = Some(Last {
            targets: targets.clone(),
            revision: answer.instances_revision(),
            trusted: 0,
        });
        Ok(targets)
    }
}

impl Wanted {
    fn request(
        &self,
        client: &Client,
    ) -> aws_sdk_servicediscovery::operation::discover_instances::builders::DiscoverInstancesFluentBuilder
    {
        let request = client
            .discover_instances()
            .namespace_name(&self.namespace)
            .service_name(&self.service)
            .health_status(self.health.clone())
            // The most that there are; the default is a hundred.
            .max_results(1_000);
        let attributes = self.attributes.iter();
        attributes.fold(request, |request, (key, value)| {
            request.query_parameters(key, value)
        })
    }
}

impl Clients {
    async fn client(&self) -> Client {
        match self {
            Self::Given(client) => client.clone(),
            #[cfg(feature = "cloud-map-rustls")]
            Self::OfEnv => {
                use aws_smithy_http_client::{Builder, tls};
                let ring = tls::rustls_provider::CryptoMode::Ring;
                let http = Builder::new().tls_provider(tls::Provider::Rustls(ring));
                let config = aws_config::defaults(aws_config::BehaviorVersion::latest());
                let config = config.http_client(http.build_https()).load().await;
                Client::new(&config)
            }
        }
    }
}

impl<E, R> From<SdkError<E, R>> for Failed
where
    E: Error + ProvideErrorMetadata + 'static,
    R: fmt::Debug + 'static,
{
    fn from(error: SdkError<E, R>) -> Self {
        let too_many = [
            "RequestLimitExceeded",
            "Throttling",
            "ThrottlingException",
            "TooManyRequestsException",
        ];
        let mut text = error.to_string();
        let mut cause = error.source();
        while let Some(error) = cause {
            text += &format!(": {error}");
            cause = error.source();
        }
        Self {
            text,
            is_throttled: error.code().is_some_and(|code| too_many.contains(&code)),
        }
    }
}

impl From<NoAddress> for Failed {
    fn from(error: NoAddress) -> Self {
        Self::of(error.to_string())
    }
}

impl Failed {
    const fn of(text: String) -> Self {
        Self {
            text,
            is_throttled: false,
        }
    }
}

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// The client tries several times within this time.
const LONGEST_ANSWER: Duration = Duration::from_secs(10);

/// So often in a row a revision that is the same is believed: then the instances are asked for in
/// any case.
const MOST_TRUSTED: u32 = 11;
