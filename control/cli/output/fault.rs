//! How a refusal looks: two lines for people, one JSON object for programs; always on standard error.
use std::process::ExitCode;

use switchback_control::Fault;
use switchback_control::api::ErrorBody;

use crate::output;

/// Prints the fault and returns the exit status that goes with it.
pub(crate) fn report(fault: Fault, json: bool) -> ExitCode {
    let status = fault.code.exit() as u8;
    let text = if json { as_json(fault) } else { as_text(&fault, output::colour_stderr()) };
    output::note(&text);
    ExitCode::from(status)
}

fn as_json(fault: Fault) -> String {
    // Three strings always serialise.
    serde_json::to_string(&ErrorBody::from(fault)).unwrap_or_default()
}

fn as_text(fault: &Fault, colour: bool) -> String {
    let (red, plain) = if colour { ("\x1b[1;31m", "\x1b[0m") } else { ("", "") };
    let head = format!("{red}error:{plain} {}: {}", fault.code, fault.detail.trim_end());
    let remedy = fault.code.remedy();
    // A fault made of its code alone says the remedy already.
    if fault.detail == remedy { head } else { format!("{head}\n  → {remedy}") }
}

#[cfg(test)]
mod tests {
    use switchback_control::Code;

    use super::*;

    #[test]
    fn people_read_the_code_what_happened_and_the_remedy() {
        let fault = Code::AddressInUse.because("cannot listen on 127.0.0.1:443");
        let text = as_text(&fault, false);
        assert_eq!(
            text,
            "error: ADDRESS_IN_USE: cannot listen on 127.0.0.1:443\n  → Another program listens there; \
             stop it or pass another --listen address."
        );
        assert!(as_text(&fault, true).starts_with("\x1b[1;31merror:\x1b[0m ADDRESS_IN_USE"));
    }

    #[test]
    fn a_fault_without_particulars_does_not_repeat_itself() {
        assert_eq!(as_text(&Code::AdminOnly.into(), false).lines().count(), 1);
    }

    #[test]
    fn programs_read_one_object() {
        let json = as_json(Code::SessionUnknown.because("no session abc"));
        let body: ErrorBody = serde_json::from_str(&json).unwrap();
        assert_eq!(body.error.code, Code::SessionUnknown);
        assert_eq!(body.error.message, "no session abc");
        assert_eq!(body.error.remedy, Code::SessionUnknown.remedy());
    }
}
