//! Metrics: the recorder that every library counts into, and what its figures mean.
//!
//! The libraries count through the `metrics` facade and know no format; the API serves the text that is made here,
//! and sets the gauges that the engine can tell when somebody asks.
//!
//! A histogram keeps each sample, 16 bytes, until it is folded into its distribution. A scrape does that, but nobody has
//! to scrape, and every request leaves a sample, also one without a token: so a task does it all the time, for as long
//! as the service runs.

use std::sync::Arc;

use anyhow::Context as _;
use floe_core::Clock;
use metrics::{Unit, describe_counter, describe_gauge, describe_histogram, gauge};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use tokio::task::JoinHandle;

use crate::limits;

/// The recorder of this process, and the task that keeps it small. Dropping it ends the task.
pub(crate) struct Metrics {
    recorder: PrometheusHandle,
    upkeep: JoinHandle<()>,
}

impl Metrics {
    /// Installs the recorder: from now on everything that is counted is kept. Once per process, inside a runtime.
    pub(crate) fn install(clock: Arc<dyn Clock>) -> anyhow::Result<Self> {
        let recorder = PrometheusBuilder::new().install_recorder().context("cannot start the metrics")?;
        describe();
        gauge!("floe_build_info", "version" => env!("CARGO_PKG_VERSION")).set(1);
        Ok(Self::keeping(recorder, clock))
    }

    fn keeping(recorder: PrometheusHandle, clock: Arc<dyn Clock>) -> Self {
        let upkeep = tokio::spawn(fold_samples(recorder.clone(), clock));
        Self { recorder, upkeep }
    }

    /// What makes the text of `/metrics`.
    pub(crate) fn render(&self) -> Arc<dyn Fn() -> String + Send + Sync> {
        let recorder = self.recorder.clone();
        Arc::new(move || recorder.render())
    }
}

impl Drop for Metrics {
    fn drop(&mut self) {
        self.upkeep.abort();
    }
}

async fn fold_samples(recorder: PrometheusHandle, clock: Arc<dyn Clock>) {
    loop {
        clock.sleep(limits::METRICS_UPKEEP).await;
        recorder.run_upkeep();
    }
}

#[derive(Clone, Copy)]
enum Kind {
    Counter,
    Gauge,
    Histogram,
}

/// A metric of any crate, as it is explained to who reads it.
struct Metric {
    /// With the names of its labels.
    name: &'static str,
    kind: Kind,
    unit: Unit,
    help: &'static str,
}

impl Metric {
    fn plain_name(&self) -> &'static str {
        self.name.split_once('{').map_or(self.name, |(name, _)| name)
    }
}

/// Every metric there is. Tests compare it with the crates and with docs/OPERATING.md.
const METRICS: &[Metric] = &[
    Metric {
        name: "floe_build_info{version}",
        kind: Kind::Gauge,
        unit: Unit::Count,
        help: "1, with the version as a label",
    },
    Metric {
        name: "floe_pins{status}",
        kind: Kind::Gauge,
        unit: Unit::Count,
        help: "Pins over all accounts",
    },
    Metric { name: "floe_blocks", kind: Kind::Gauge, unit: Unit::Count, help: "Blocks in the store" },
    Metric {
        name: "floe_stored_bytes",
        kind: Kind::Gauge,
        unit: Unit::Bytes,
        help: "Bytes of these blocks, as of the last look at the metrics",
    },
    Metric {
        name: "floe_blocks_bytes",
        kind: Kind::Gauge,
        unit: Unit::Bytes,
        help: "The same, as of the last write",
    },
    Metric {
        name: "floe_disk_free_bytes",
        kind: Kind::Gauge,
        unit: Unit::Bytes,
        help: "Free bytes on the volume of the store",
    },
    Metric {
        name: "floe_read_only",
        kind: Kind::Gauge,
        unit: Unit::Count,
        help: "1 while new pins are refused for lack of space",
    },
    Metric { name: "floe_peers", kind: Kind::Gauge, unit: Unit::Count, help: "Peers that are connected" },
    Metric {
        name: "floe_worker_queue{worker}",
        kind: Kind::Gauge,
        unit: Unit::Count,
        help: "Work that waits for a background worker",
    },
    Metric {
        name: "floe_http_requests_total{route, method, status}",
        kind: Kind::Counter,
        unit: Unit::Count,
        help: "Requests that were answered, by class of status",
    },
    Metric {
        name: "floe_http_request_seconds{route}",
        kind: Kind::Histogram,
        unit: Unit::Seconds,
        help: "Time until the answer began",
    },
    Metric {
        name: "floe_limit_hits_total{limit}",
        kind: Kind::Counter,
        unit: Unit::Count,
        help: "How often a limit was reached",
    },
    Metric {
        name: "floe_bitswap_bytes_total{direction}",
        kind: Kind::Counter,
        unit: Unit::Bytes,
        help: "Bytes of bitswap messages, in and out",
    },
    Metric {
        name: "floe_bitswap_blocks_received_total{outcome}",
        kind: Kind::Counter,
        unit: Unit::Count,
        help: "Blocks that came: useful, duplicate, unwanted",
    },
    Metric {
        name: "floe_bitswap_blocks_sent_total",
        kind: Kind::Counter,
        unit: Unit::Count,
        help: "Blocks that were sent",
    },
    Metric {
        name: "floe_provides_total{result}",
        kind: Kind::Counter,
        unit: Unit::Count,
        help: "Announcements of roots: ok, failed",
    },
    Metric {
        name: "floe_gc_blocks_total",
        kind: Kind::Counter,
        unit: Unit::Count,
        help: "Blocks that were freed",
    },
    Metric {
        name: "floe_blocks_damaged_total",
        kind: Kind::Counter,
        unit: Unit::Count,
        help: "Blocks that were found damaged",
    },
    Metric {
        name: "floe_pack_damage_total",
        kind: Kind::Counter,
        unit: Unit::Count,
        help: "Damaged places that the recovery of packs found",
    },
    Metric {
        name: "floe_packs_read_by_hints_total",
        kind: Kind::Counter,
        unit: Unit::Count,
        help: "Packs that a start took from their hint file instead of reading them",
    },
    Metric {
        name: "floe_scrub_bytes_total",
        kind: Kind::Counter,
        unit: Unit::Bytes,
        help: "Bytes that the scrub has read",
    },
    Metric {
        name: "floe_scrub_finished_seconds",
        kind: Kind::Gauge,
        unit: Unit::Seconds,
        help: "When the scrub last finished a round, in seconds since 1970",
    },
    Metric {
        name: "floe_aggregates{state}",
        kind: Kind::Gauge,
        unit: Unit::Count,
        help: "Pieces that pins are packed into",
    },
    Metric {
        name: "floe_aggregates_packed_total",
        kind: Kind::Counter,
        unit: Unit::Count,
        help: "Pieces that were packed",
    },
    Metric {
        name: "floe_segments_given_back_total",
        kind: Kind::Counter,
        unit: Unit::Count,
        help: "Segments that wait for another piece, because blocks of them were missing or damaged",
    },
    Metric {
        name: "floe_pulls_open",
        kind: Kind::Gauge,
        unit: Unit::Count,
        help: "Pulls of pieces that are under way",
    },
    Metric {
        name: "floe_pulls_total{outcome}",
        kind: Kind::Counter,
        unit: Unit::Count,
        help: "Requests of the pull server, by how they were answered",
    },
    Metric {
        name: "floe_pull_bytes_total",
        kind: Kind::Counter,
        unit: Unit::Bytes,
        help: "Bytes of pieces that were pulled",
    },
    Metric {
        name: "floe_deals{state}",
        kind: Kind::Gauge,
        unit: Unit::Count,
        help: "Attempts to place replicas",
    },
    Metric {
        name: "floe_deal_bugs_total",
        kind: Kind::Counter,
        unit: Unit::Count,
        help: "Refusals that say that the proposal was wrong: please report them",
    },
    Metric { name: "floe_spending", kind: Kind::Gauge, unit: Unit::Count, help: "1 while deals are made" },
    Metric {
        name: "floe_attofil_reserved",
        kind: Kind::Gauge,
        unit: Unit::Count,
        help: "What is set aside for deals and gas, in attoFIL",
    },
    Metric {
        name: "floe_attofil_spent",
        kind: Kind::Gauge,
        unit: Unit::Count,
        help: "What was spent, in attoFIL",
    },
    Metric {
        name: "floe_attofil_wallet",
        kind: Kind::Gauge,
        unit: Unit::Count,
        help: "What the wallet has, in attoFIL",
    },
    Metric {
        name: "floe_attofil_escrow",
        kind: Kind::Gauge,
        unit: Unit::Count,
        help: "What lies with the market, in attoFIL",
    },
    Metric {
        name: "floe_attofil_locked",
        kind: Kind::Gauge,
        unit: Unit::Count,
        help: "What of that published deals hold, in attoFIL",
    },
    Metric {
        name: "floe_chain_head",
        kind: Kind::Gauge,
        unit: Unit::Count,
        help: "The newest epoch that was seen",
    },
];

fn describe() {
    for metric in METRICS {
        let (name, unit, help) = (metric.plain_name(), metric.unit, metric.help);
        match metric.kind {
            Kind::Counter => describe_counter!(name, unit, help),
            Kind::Gauge => describe_gauge!(name, unit, help),
            Kind::Histogram => describe_histogram!(name, unit, help),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::{Path, PathBuf};
    use std::sync::Arc;

    use floe_core::ManualClock;
    use metrics_exporter_prometheus::PrometheusBuilder;

    use super::{METRICS, Metrics};
    use crate::limits;

    const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");

    /// Source files under a folder, without tests.
    fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                sources(&path, found);
            } else if path.extension().is_some_and(|e| e == "rs") {
                found.push(path);
            }
        }
    }

    /// The names that stand behind `counter!("`, `gauge!("` and `histogram!("` in the sources of the crates.
    fn counted() -> BTreeSet<String> {
        let mut files = Vec::new();
        for krate in std::fs::read_dir(Path::new(ROOT).join("crates")).unwrap() {
            sources(&krate.unwrap().path().join("src"), &mut files);
        }
        sources(&Path::new(ROOT).join("bin/floe/src"), &mut files);
        let mut names = BTreeSet::new();
        for file in files {
            let text = std::fs::read_to_string(file).unwrap();
            // A call that is longer than a line has its name on the next one.
            let text = text.split_whitespace().collect::<Vec<_>>().join(" ").replace("( ", "(");
            for part in text.split("!(\"floe_").skip(1) {
                let name = part.split('"').next().unwrap();
                // Not what is formatted, as tests do with names of tokens.
                if name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_') {
                    names.insert(format!("floe_{name}"));
                }
            }
        }
        names
    }

    /// Memory of this process now, in bytes.
    fn resident() -> usize {
        let text = std::fs::read_to_string("/proc/self/statm").unwrap();
        text.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() * 4096
    }

    /// Where nobody scraped, each request left a sample that was never let go, a 401 too: whoever could reach the API
    /// could fill the memory of the node.
    #[tokio::test]
    async fn samples_do_not_pile_up_where_nobody_scrapes() {
        let recorder = PrometheusBuilder::new().build_recorder();
        let clock = ManualClock::default();
        let metrics = Metrics::keeping(recorder.handle(), Arc::new(clock.clone()));
        let histogram = metrics::with_local_recorder(&recorder, || metrics::histogram!("test_seconds"));
        // What a first round allocates is reused by the next ones.
        let rounds = |count: usize| {
            let (clock, histogram) = (clock.clone(), histogram.clone());
            async move {
                for _ in 0..count {
                    (0..100_000).for_each(|_| histogram.record(0.001));
                    clock.advance(limits::METRICS_UPKEEP);
                    // This runtime has one thread: the task has its turn now.
                    tokio::task::yield_now().await;
                }
            }
        };
        rounds(2).await;
        let before = resident();
        rounds(48).await;
        let grown = resident().saturating_sub(before);
        assert!(grown < 32 << 20, "4,800,000 samples, 73 MiB of them, have taken {} MiB", grown >> 20);
        assert!((metrics.render())().contains("test_seconds_count 5000000"));
    }

    #[tokio::test]
    async fn the_upkeep_ends_with_the_service() {
        let recorder = PrometheusBuilder::new().build_recorder();
        let metrics = Metrics::keeping(recorder.handle(), Arc::new(ManualClock::default()));
        tokio::task::yield_now().await;
        let task = metrics.upkeep.abort_handle();
        assert!(!task.is_finished());
        drop(metrics);
        tokio::task::yield_now().await;
        assert!(task.is_finished());
    }

    #[test]
    fn every_metric_is_described() {
        let described: BTreeSet<String> =
            METRICS.iter().map(|metric| metric.plain_name().to_owned()).collect();
        assert_eq!(counted(), described);
        assert_eq!(METRICS.len(), described.len(), "one is described twice");
    }

    #[test]
    fn every_metric_is_in_the_document() {
        let document = std::fs::read_to_string(Path::new(ROOT).join("docs/OPERATING.md")).unwrap();
        for metric in METRICS {
            let row = format!("| `{}` | {} |", metric.name, metric.help);
            assert!(document.contains(&row), "docs/OPERATING.md lacks the row\n{row}");
        }
    }
}
