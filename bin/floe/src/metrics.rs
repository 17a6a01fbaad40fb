//! Metrics: the recorder that every library counts into, and what its figures mean.
//!
//! The libraries count through the `metrics` facade and know no format; the API serves the text that is made here,
//! and sets the gauges that the engine can tell when somebody asks.

use std::sync::Arc;

use anyhow::Context as _;
use metrics::{Unit, describe_counter, describe_gauge, gauge};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};

/// The recorder of this process.
pub(crate) struct Metrics {
    recorder: PrometheusHandle,
}

impl Metrics {
    /// Installs the recorder: from now on everything that is counted is kept. Once per process.
    pub(crate) fn install() -> anyhow::Result<Self> {
        let recorder = PrometheusBuilder::new().install_recorder().context("cannot start the metrics")?;
        describe();
        gauge!("floe_build_info", "version" => env!("CARGO_PKG_VERSION")).set(1);
        Ok(Self { recorder })
    }

    /// What makes the text of `/metrics`.
    pub(crate) fn render(self) -> Arc<dyn Fn() -> String + Send + Sync> {
        Arc::new(move || {
            // Histograms are kept as samples until somebody does this.
            self.recorder.run_upkeep();
            self.recorder.render()
        })
    }
}

fn describe() {
    describe_gauge!("floe_build_info", "1, with the version as a label");
    describe_gauge!("floe_pins", "Pins over all accounts, by status");
    describe_gauge!("floe_blocks", "Blocks in the store");
    describe_gauge!("floe_stored_bytes", Unit::Bytes, "Bytes of these blocks");
    describe_gauge!("floe_disk_free_bytes", Unit::Bytes, "Free bytes on the volume of the store");
    describe_gauge!("floe_read_only", "1 while new pins are refused for lack of space");
    describe_counter!("floe_limit_hits_total", "How often a limit was reached, by limit");
    describe_counter!("floe_bitswap_bytes_total", Unit::Bytes, "Bytes of blocks over bitswap, by direction");
}
