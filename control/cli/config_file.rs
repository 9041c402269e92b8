//! `--config FILE`: TOML with the same keys as the long flags. Flags win over the environment, both over the file.
use std::fs;
use std::io::Read;
use std::path::Path;

use serde::de::DeserializeOwned;
use switchback_control::{Code, Fault};

/// Largest file read; an honest one is a few KiB.
const FILE_BYTES_MAX: u64 = 1024 * 1024;

/// Reads a configuration file into the arguments it stands for.
///
/// # Errors
/// [`Code::ConfigInvalid`] that names the file, the line and the key.
pub(crate) fn load<T: DeserializeOwned>(path: &Path) -> Result<T, Fault> {
    parse(&read(path)?, &path.display().to_string())
}

fn read(path: &Path) -> Result<String, Fault> {
    let invalid = |error: &dyn std::fmt::Display| {
        Code::ConfigInvalid.because(format!("{}: {error}", path.display()))
    };
    let file = fs::File::open(path).map_err(|error| invalid(&error))?;
    let mut text = String::new();
    file.take(FILE_BYTES_MAX + 1).read_to_string(&mut text).map_err(|error| invalid(&error))?;
    if text.len() as u64 > FILE_BYTES_MAX {
        return Err(invalid(&"the file exceeds 1 MiB"));
    }
    Ok(text)
}

fn parse<T: DeserializeOwned>(text: &str, file: &str) -> Result<T, Fault> {
    toml::from_str(text).map_err(|error| {
        let place = error.span().map_or_else(String::new, |span| place_of(text, span.start));
        Code::ConfigInvalid.because(format!("{file}{place}: {}", error.message().trim_end()))
    })
}

/// `:LINE: key` of a byte position; the key is left out where the line has none.
fn place_of(text: &str, position: usize) -> String {
    let before = text.get(..position).unwrap_or(text);
    let number = before.matches('\n').count() + 1;
    let line = text.lines().nth(number - 1).unwrap_or_default();
    match line.split_once('=') {
        Some((key, _)) if is_key(key.trim()) => format!(":{number}: `{}`", key.trim()),
        _ => format!(":{number}"),
    }
}

fn is_key(text: &str) -> bool {
    !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_'))
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;
    use crate::resource_spec::ResourceSpec;

    #[derive(Debug, Default, Deserialize)]
    #[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
    struct Sample {
        warm_legs: Option<usize>,
        resource: Vec<ResourceSpec>,
    }

    fn fault(text: &str) -> String {
        let fault = parse::<Sample>(text, "a.toml").unwrap_err();
        assert_eq!(fault.code, Code::ConfigInvalid);
        fault.detail
    }

    #[test]
    fn keys_are_those_of_the_long_flags() {
        let sample: Sample =
            parse("warm-legs = 3\nresource = [\"ssh=tcp:h:22\"]\n", "a.toml").unwrap();
        assert_eq!(sample.warm_legs, Some(3));
        assert_eq!(sample.resource[0].0.name, "ssh");
    }

    #[test]
    fn every_fault_names_file_line_and_key() {
        let unknown = fault("# c\nwarm-legs = 3\nwarm_leg = 4\n");
        assert!(unknown.starts_with("a.toml:3: `warm_leg`: unknown field"), "{unknown}");
        let kind = fault("warm-legs = \"many\"\n");
        assert!(kind.starts_with("a.toml:1: `warm-legs`: invalid type"), "{kind}");
        let value = fault("\nresource = [\"ssh\"]\n");
        assert!(value.starts_with("a.toml:2: `resource`: expected NAME="), "{value}");
        let syntax = fault("warm-legs\n");
        assert!(syntax.starts_with("a.toml:1: "), "{syntax}");
    }

    #[test]
    fn a_missing_file_is_named() {
        let fault = load::<Sample>(Path::new("/nowhere/a.toml")).unwrap_err();
        assert_eq!(fault.code, Code::ConfigInvalid);
        assert!(fault.detail.starts_with("/nowhere/a.toml: "));
    }
}
