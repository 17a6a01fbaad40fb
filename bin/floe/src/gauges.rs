//! Metrics: the recorder that the libraries count into, and the gauges that are read when somebody scrapes.

use std::sync::Arc;

use anyhow::Context as _;
use floe_engine::{Engine, Status};
use metrics::{Unit, describe_gauge, gauge};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};

/// Makes the text of `/metrics`.
pub(crate) type Scrape = Arc<dyn Fn() -> String + Send + Sync>;

/// The recorder of this process.
pub(crate) struct Gauges {
    recorder: PrometheusHandle,
}

impl Gauges {
    /// Installs the recorder: from now on everything that is counted is kept.
    pub(crate) fn install() -> anyhow::Result<Self> {
        let recorder = PrometheusBuilder::new().install_recorder().context("cannot start the metrics")?;
        describe_gauge!("floe_pins", "Pins over all accounts, by status");
        describe_gauge!("floe_blocks", "Blocks in the store");
        describe_gauge!("floe_stored_bytes", Unit::Bytes, "Bytes of these blocks");
        describe_gauge!("floe_disk_free_bytes", Unit::Bytes, "Free bytes on the volume of the store");
        describe_gauge!("floe_read_only", "1 while new pins are refused for lack of space");
        describe_gauge!("floe_build_info", "1, with the version as a label");
        gauge!("floe_build_info", "version" => env!("CARGO_PKG_VERSION")).set(1);
        Ok(Self { recorder })
    }

    /// What makes the text of a scrape: the gauges are set, then everything is written out.
    ///
    /// It is called on a thread of the runtime, which it holds up for as long as one query of counters takes.
    pub(crate) fn scrape(self, engine: Engine) -> Scrape {
        Arc::new(move || {
            let status =
                tokio::task::block_in_place(|| tokio::runtime::Handle::current().block_on(engine.status()));
            match status {
                Ok(status) => set(&status),
                // The counters are still worth having; /readyz says what is wrong.
                Err(error) => tracing::warn!(%error, "the gauges are stale: {error}"),
            }
            // Histograms are kept as samples until they are read.
            self.recorder.run_upkeep();
            self.recorder.render()
        })
    }
}

#[expect(
    clippy::cast_precision_loss,
    reason = "Prometheus knows only floats; above 2^53 the last digits do not matter"
)]
fn set(status: &Status) {
    for word in floe_core::PinStatus::ALL {
        let count = status.pins.get(&word).copied().unwrap_or(0);
        gauge!("floe_pins", "status" => word.as_str()).set(count as f64);
    }
    gauge!("floe_blocks").set(status.blocks as f64);
    gauge!("floe_stored_bytes").set(status.stored_bytes as f64);
    gauge!("floe_disk_free_bytes").set(status.disk_free_bytes as f64);
    gauge!("floe_read_only").set(if status.read_only { 1.0 } else { 0.0 });
}
