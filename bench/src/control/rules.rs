//! Policies as an organisation with many teams writes them, any number of them. Pure.

/// Of the built-in policies the administrators' and the grants', so that the broker can be used and nothing but the number
/// of rules differs from it.
const BASE: &str = r#"
@id("administrators")
permit (principal, action == Action::"admin", resource) when { principal.admin };

@id("grants")
permit (principal, action in [Action::"see", Action::"connect"], resource) when { context.granted };
"#;

/// `count` policies, two at least: the base, and teams' rights and bans, none of which is about the users here. All of them
/// are evaluated for each request: those of a team's own fail in their heads, the others in their conditions.
pub(crate) fn policies(count: usize) -> String {
    let mut text = BASE.to_owned();
    for number in 2..count {
        text += &match number % 3 {
            0 => format!(
                r#"
@id("team-{number}")
permit (principal in Group::"team-{number}", action in [Action::"see", Action::"connect"], resource)
when {{ resource.tags.contains("team-{number}") && context.time.hour >= 6 && context.time.hour < 22 }};
"#
            ),
            1 => format!(
                r#"
@id("folder-{number}")
permit (principal, action in [Action::"see", Action::"connect"], resource)
when {{ resource.folder == "teams/{number}" && context.locations.contains("office-{number}") }};
"#
            ),
            _ => format!(
                r#"
@id("banned-{number}")
forbid (principal, action == Action::"connect", resource)
when {{ resource.tags.contains("sealed-{number}") && !(principal in Group::"auditors-{number}") }};
"#
            ),
        };
    }
    text
}

/// The same, and nobody may connect to `resource`.
pub(crate) fn closing(count: usize, resource: &str) -> String {
    let ban = format!(
        r#"
@id("closed")
forbid (principal, action == Action::"connect", resource) when {{ resource.name == "{resource}" }};
"#
    );
    policies(count) + &ban
}

#[cfg(test)]
mod tests {
    use switchback_control::policy::{Policies, PolicyFile};

    use super::*;

    #[test]
    fn the_broker_takes_any_number_of_them_and_one_more_to_close_a_resource() {
        for count in [2, 10, 100, 1000] {
            let check = |text: String| {
                let file = PolicyFile { name: "rules.cedar".into(), text };
                Policies::check(&[file]).unwrap().len()
            };
            assert_eq!(check(policies(count)), count);
            assert_eq!(check(closing(count, "r-0")), count + 1);
        }
    }
}
