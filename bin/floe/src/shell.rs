//! What needs neither a node nor a data directory: completions, manual pages, and the settings as text.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::CommandFactory as _;

use crate::cli::Cli;
use crate::config::Layers;
use crate::config::render;
use crate::output::{Output, Table, write_stdout};

/// `floe completions SHELL`.
pub(crate) fn completions(shell: clap_complete::Shell) -> anyhow::Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "floe", &mut script);
    write_stdout(&String::from_utf8_lossy(&script))
}

/// `floe man`.
pub(crate) fn man(dir: Option<PathBuf>) -> anyhow::Result<()> {
    match dir {
        Some(dir) => man_pages(&dir),
        None => {
            let mut page = Vec::new();
            clap_mangen::Man::new(Cli::command()).render(&mut page)?;
            write_stdout(&String::from_utf8_lossy(&page))
        }
    }
}

fn man_pages(dir: &Path) -> anyhow::Result<()> {
    let cannot = || format!("cannot write manual pages to {}", dir.display());
    std::fs::create_dir_all(dir).with_context(cannot)?;
    clap_mangen::generate_to(Cli::command(), dir).with_context(cannot)
}

/// `floe config show`.
pub(crate) fn show_settings(out: Output, layers: &Layers) -> anyhow::Result<()> {
    let shown = render::shown(layers);
    out.print(&shown, || {
        let mut table = Table::new(&["SETTING", "FROM", "VALUE"]);
        for setting in &shown {
            let value = setting.value.as_ref().map_or("(unset)".to_owned(), ToString::to_string);
            table.row([&setting.key, &setting.origin, &value]);
        }
        table.render()
    })
}
