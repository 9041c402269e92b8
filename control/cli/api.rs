//! `api`: how programs talk to the broker.
use clap::Args;
use switchback_control::{Fault, broker};

use crate::output;

/// Print the OpenAPI document of the broker's API.
///
/// The same document, of the version that runs there, is at GET /v1/openapi.json, without a token. The token in a login
/// string is the bearer token: base64url-decode what follows `sblogin1_`, field `t`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  switchback api | jq -r '.paths | keys[]'
  curl --cacert tls.crt https://gate.example/v1/openapi.json
  curl --cacert tls.crt -H \"Authorization: Bearer $TOKEN\" https://gate.example/v1/sessions")]
pub(crate) struct ApiArgs {}

/// Runs `api`.
pub(crate) fn run() -> Result<(), Fault> {
    output::line(&broker::openapi()?)
}
