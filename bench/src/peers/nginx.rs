//! nginx's stream module: one worker, 64 KiB buffers, half-close on.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::Skip;
use super::child::Process;
use super::program::{answer, find, required, version};
use super::proxied::{Program, Site};
use crate::measure::placement::raise_open_files;

/// A master and its one worker.
#[derive(Debug)]
pub(crate) struct Nginx;

/// Most connections of the worker, two per flow, where the open-file limit allows.
const CONNECTIONS_MAX: u64 = 40_000;

/// Its file where stream is a module of its own, as Debian packages it.
const MODULE: &str = "ngx_stream_module.so";

/// How stream gets into nginx.
#[derive(Debug, PartialEq, Eq)]
enum Stream {
    Built,
    Module(PathBuf),
}

impl Nginx {
    fn config(site: &Site<'_>, stream: &Stream, files_max: u64) -> String {
        let load = match stream {
            Stream::Built => String::new(),
            Stream::Module(path) => format!("load_module {};\n", path.display()),
        };
        let connections = CONNECTIONS_MAX.min(files_max);
        format!(
            "{load}daemon off;\nworker_processes 1;\nworker_rlimit_nofile {connections};\n\
             pid {};\nerror_log stderr error;\nevents {{ worker_connections {connections}; }}\n\
             stream {{\n  access_log off;\n  server {{\n    listen {} backlog=4096;\n    \
             proxy_pass {};\n    proxy_buffer_size 64k;\n    tcp_nodelay on;\n    \
             proxy_half_close on;\n    proxy_connect_timeout 5s;\n    proxy_timeout 1h;\n  }}\n}}\n",
            site.files.join("pid").display(),
            site.relay,
            site.target
        )
    }
}

impl Program for Nginx {
    fn available(&self) -> Result<(), Skip> {
        let nginx = required("nginx")?;
        stream_of(&nginx).map(drop).map_err(|error| Skip {
            reason: format!("{error:#}"),
            remedy: "install libnginx-mod-stream, or run scripts/bench-peers".to_owned(),
        })
    }

    fn version(&self) -> Result<String> {
        Ok(format!("{}; stream, 64 KiB buffers, one worker", version("nginx", "-v")?))
    }

    fn start(&self, site: &Site<'_>) -> Result<Vec<Process>> {
        let nginx = find("nginx").context("nginx is gone")?;
        let files_max = raise_open_files().unwrap_or(u64::MAX);
        let config = Nginx::config(site, &stream_of(&nginx)?, files_max);
        let path = site.write("nginx.conf", &config)?;
        let mut command = Command::new(nginx);
        command.args(["-e", "stderr", "-p"]).arg(site.files).arg("-c").arg(path);
        Ok(vec![site.start(command)?])
    }
}

fn stream_of(nginx: &Path) -> Result<Stream> {
    let build = answer(nginx, "-V")?;
    let in_modules = |path: &Path| path.is_file();
    stream(&build, in_modules).context("nginx has no stream module")
}

/// From the configure arguments that `nginx -V` lists.
fn stream(build: &str, exists: impl Fn(&Path) -> bool) -> Option<Stream> {
    let mut arguments = build.split_whitespace();
    if arguments.clone().any(|argument| argument == "--with-stream") {
        return Some(Stream::Built);
    }
    let directory = arguments.find_map(|argument| argument.strip_prefix("--modules-path="))?;
    let module = Path::new(directory).join(MODULE);
    exists(&module).then_some(Stream::Module(module))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stream_is_found_built_in_or_as_a_module() {
        let dynamic =
            "nginx version: x\nconfigure arguments: --modules-path=/m --with-stream=dynamic";
        let module = Path::new("/m/ngx_stream_module.so");
        assert_eq!(stream(dynamic, |path| path == module), Some(Stream::Module(module.to_owned())));
        assert_eq!(stream(dynamic, |_| false), None);
        assert_eq!(stream("configure arguments: --with-stream", |_| false), Some(Stream::Built));
        assert_eq!(stream("configure arguments: --with-http_v2_module", |_| true), None);
    }
}
