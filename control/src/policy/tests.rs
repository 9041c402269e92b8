//! Policies decide as they are written, and nothing in them or in what they are asked breaks the judge.
use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;
use crate::claims::{Claims, ENTRIES_MAX, GROUPS_MAX};
use crate::wire::{Standby, TransportPolicy, UdpUse};

fn file(text: &str) -> PolicyFile {
    PolicyFile { name: "test.cedar".into(), text: text.into() }
}

fn policies(text: &str) -> Policies {
    Policies::check(&[file(text)]).unwrap_or_else(|wrong| panic!("{wrong:?}"))
}

fn complaints(text: &str) -> Vec<Complaint> {
    Policies::check(&[file(text)]).map(drop).expect_err("something is wrong with it")
}

fn ssh() -> Object {
    let tags = BTreeSet::from(["prod".to_owned()]);
    Object::Resource(ResourceFacts { tags, ..ResourceFacts::named("ssh") })
}

fn session(owner: &str) -> Object {
    let resource = ResourceFacts::named("ssh");
    Object::Session { id: "s1".into(), owner: owner.into(), resource }
}

fn ada() -> Subject {
    Subject { name: "ada".into(), ..Subject::default() }
}

fn ask(policies: &Policies, subject: &Subject, action: Action, object: &Object) -> Decision {
    ask_here(policies, subject, action, object, &Circumstances::default())
}

fn ask_here(
    policies: &Policies,
    subject: &Subject,
    action: Action,
    object: &Object,
    circumstances: &Circumstances,
) -> Decision {
    policies.decide(&Request { subject, action, object, circumstances })
}

#[test]
fn the_built_in_policies_are_sound_and_do_as_before_policies_were_there() {
    let built_in = Policies::built_in();
    assert!(built_in.is_built_in() && !built_in.is_empty());
    let admin = Subject { name: "root".into(), admin: true, ..Subject::default() };
    let granted = Circumstances { granted: true, ..Circumstances::default() };
    let own = session("ada");
    let others = session("bob");
    let none = Circumstances::default();
    let table: &[(&Subject, Action, &Object, &Circumstances, Option<&str>)] = &[
        (&ada(), Action::See, &ssh(), &granted, Some("grants")),
        (&ada(), Action::Connect, &ssh(), &granted, Some("grants")),
        (&ada(), Action::See, &ssh(), &none, None),
        (&ada(), Action::Connect, &ssh(), &none, None),
        (&admin, Action::Connect, &ssh(), &none, None),
        (&ada(), Action::Kill, &own, &none, Some("owners")),
        (&ada(), Action::Kill, &others, &none, None),
        (&admin, Action::Kill, &others, &none, Some("administrators")),
        (&ada(), Action::ShadowView, &own, &none, None),
        (&admin, Action::ShadowView, &others, &none, Some("administrators-shadow")),
        (&admin, Action::ShadowControl, &others, &none, Some("administrators-shadow")),
        (&ada(), Action::Admin, &Object::Broker, &none, None),
        (&admin, Action::Admin, &Object::Broker, &none, Some("administrators")),
    ];
    for (subject, action, object, here, expected) in table {
        let decision = ask_here(&built_in, subject, *action, object, here);
        let what = format!("{} {action:?} {object:?}", subject.name);
        assert_eq!(decision.allowed, expected.is_some(), "{what}");
        assert_eq!(decision.deciding.first().map(String::as_str), *expected, "{what}");
        assert_eq!(decision.errors, [""; 0], "{what}");
        assert_eq!(decision.code().is_none(), decision.allowed);
    }
    let shadow = ask(&built_in, &admin, Action::ShadowView, &others);
    assert_eq!(shadow.consent(), Consent::Required);
}

/// Each: a condition, and circumstances in which it holds.
#[test]
fn every_circumstance_can_decide() {
    let base = || (ada(), Circumstances::default());
    let with = |change: fn(&mut Subject, &mut Circumstances)| {
        let (mut subject, mut here) = base();
        change(&mut subject, &mut here);
        (subject, here)
    };
    let claims = |change: fn(&mut Claims)| {
        let (mut subject, here) = base();
        change(&mut subject.claims);
        (subject, here)
    };
    let table = [
        ("principal in Group::\"ops\"", claims(|it| it.groups = BTreeSet::from(["ops".into()]))),
        (
            "context has source && context.source.isInRange(ip(\"192.0.2.0/24\"))",
            with(|_, here| here.source = Some("::ffff:192.0.2.9".parse().unwrap())),
        ),
        (
            "context has source && context.source.isInRange(ip(\"2001:db8::/32\"))",
            with(|_, here| here.source = Some("2001:db8::9".parse().unwrap())),
        ),
        (
            "context.locations.contains(\"office\")",
            with(|_, here| here.locations = BTreeSet::from(["office".into()])),
        ),
        (
            "context.time.weekday == 3 && context.time.hour == 9 && context.time.minute == 30",
            with(|_, here| here.now_ms = 1000 * seconds_of(3, 9, 30)),
        ),
        ("context has acr && context.acr == \"gold\"", claims(|it| it.acr = Some("gold".into()))),
        ("context.amr.contains(\"hwk\")", claims(|it| it.amr = BTreeSet::from(["hwk".into()]))),
        (
            "context.device.hasTag(\"os\") && context.device.getTag(\"os\") == \"linux\"",
            claims(|it| it.device = [("os".into(), "linux".into())].into()),
        ),
        (
            "context has issuer && context.issuer == \"https://id.example\"",
            claims(|it| it.issuer = Some("https://id.example".into())),
        ),
        (
            "context has signed_in && context.signed_in < 60",
            with(|subject, here| {
                here.now_ms = 100_000;
                subject.signed_in_ms = Some(50_000);
            }),
        ),
        (
            "context has transport && context.transport == \"udp\"",
            with(|_, here| here.transport = Some("udp".into())),
        ),
        ("context.granted", with(|_, here| here.granted = true)),
        ("principal.admin", with(|subject, _| subject.admin = true)),
        ("principal.name like \"b*\"", with(|subject, _| subject.name = "bob".into())),
    ];
    for (condition, (subject, here)) in table {
        let text = format!(
            "permit(principal, action == Action::\"connect\", resource) when {{ {condition} }};"
        );
        let policies = policies(&text);
        let (other, elsewhere) = base();
        let at = |subject: &Subject, here: &Circumstances| {
            ask_here(&policies, subject, Action::Connect, &ssh(), here)
        };
        assert!(at(&subject, &here).allowed, "{condition}");
        let unmet = at(&other, &elsewhere);
        assert!(!unmet.allowed && unmet.errors.is_empty(), "{condition}: {unmet:?}");
        assert_eq!(unmet.code(), Some(Code::PolicyDenied));
    }
}

#[test]
fn tags_kind_and_folder_of_a_resource_decide() {
    let policies = policies(
        "permit(principal, action, resource is Resource) when { resource.tags.contains(\"prod\") \
         && resource.kind == \"tcp\" && resource.folder == \"\" && resource.name == \"ssh\" };",
    );
    assert!(ask(&policies, &ada(), Action::See, &ssh()).allowed);
    let other = Object::Resource(ResourceFacts::named("ssh"));
    assert!(!ask(&policies, &ada(), Action::See, &other).allowed);
}

#[test]
fn a_session_is_in_its_resource_and_has_its_owner() {
    let policies = policies(
        "permit(principal, action == Action::\"kill\", resource in Resource::\"ssh\") \
         when { resource.owner == User::\"bob\" };",
    );
    assert!(ask(&policies, &ada(), Action::Kill, &session("bob")).allowed);
    assert!(!ask(&policies, &ada(), Action::Kill, &session("eve")).allowed);
}

#[test]
fn a_forbid_beats_every_permit_and_says_so() {
    let policies = policies(
        "@id(\"all\") permit(principal, action, resource);\n\
         @id(\"never\") forbid(principal == User::\"ada\", action, resource);",
    );
    let decision = ask(&policies, &ada(), Action::Connect, &ssh());
    assert_eq!((decision.allowed, decision.deciding), (false, vec!["never".to_owned()]));
    let bob = Subject { name: "bob".into(), ..Subject::default() };
    assert!(ask(&policies, &bob, Action::Connect, &ssh()).allowed);
}

#[test]
fn a_forbid_that_cannot_be_evaluated_denies_and_a_permit_does_not_permit() {
    // Integer overflow is the one error that validation cannot see.
    let overflow = "when { context.time.unix * 9223372036854775807 > 5 }";
    let here = Circumstances { now_ms: 9_000_000, ..Circumstances::default() };
    let broken = policies(&format!(
        "permit(principal, action, resource);\n@id(\"x\") forbid(principal, action, resource) {overflow};"
    ));
    let decision = ask_here(&broken, &ada(), Action::Connect, &ssh(), &here);
    assert!(!decision.allowed && decision.errors.len() == 1, "{decision:?}");
    assert_eq!(decision.deciding, ["x"]);
    let broken = policies(&format!("permit(principal, action, resource) {overflow};"));
    let decision = ask_here(&broken, &ada(), Action::Connect, &ssh(), &here);
    assert!(!decision.allowed && decision.errors.len() == 1, "{decision:?}");
}

#[test]
fn the_strictest_of_all_deciding_permits_binds() {
    let policies = policies(
        "@no_udp @max_session(\"8h\") @rate(\"10mbit\") permit(principal, action, resource);\n\
         @max_session(\"1h30m\") @reauthenticate(\"7d\") @consent(\"notify\") @rate(\"1gbit\") \
         permit(principal, action, resource);\n\
         @relay_only permit(principal == User::\"bob\", action, resource);",
    );
    let decision = ask(&policies, &ada(), Action::Connect, &ssh());
    let expected = Obligations {
        no_udp: true,
        max_session_s: Some(5400),
        reauthenticate_s: Some(7 * 86_400),
        consent: Some(Consent::Notify),
        rate_bits: Some(10_000_000),
        ..Obligations::default()
    };
    assert_eq!(decision.obligations, expected);
    assert_eq!(decision.deciding.len(), 2);
    let words = expected.words();
    assert_eq!(Obligations::from_words(words.iter().map(String::as_str)), Ok(expected));
}

#[test]
fn mistakes_are_named_with_line_and_column() {
    let all = "permit(principal, action, resource)";
    for (text, line, column, part) in [
        (format!("{all};\npermit(principal, action, resorce);"), 2, 27, "resorce"),
        (format!("{all};\n{all} when {{\n  context.gramted }};"), 3, 3, "gramted"),
        (format!("{all} when {{ context.acr == \"gold\" }};"), 1, 44, "acr"),
        ("permit(principal, action == Action::\"conect\", resource);".into(), 1, 29, "conect"),
        (format!("{all};\n\n@no_upd {all};"), 3, 1, "@no_upd: no such obligation"),
        (format!("@max_session(\"8 hours\") {all};"), 1, 1, "@max_session: is a time"),
        (format!("@rate(\"fast\") {all};"), 1, 1, "@rate: is a rate"),
        (format!("@consent(\"maybe\") {all};"), 1, 1, "@consent"),
        ("@no_udp forbid(principal, action, resource);".into(), 1, 1, "only a permit"),
        (format!("@id(\"a\") {all};\n@id(\"a\") {all};"), 2, 1, "another policy"),
        ("permit(principal == ?principal, action, resource);".into(), 0, 0, "template"),
    ] {
        let wrong = complaints(&text);
        let first = &wrong[0];
        assert!(first.to_string().contains(part), "{text}: {wrong:?}");
        assert_eq!((first.line, first.column), (line, column), "{text}: {wrong:?}");
        assert_eq!(first.file, "test.cedar");
    }
    let two = complaints("permit(principal, action, resorce);\n@no_udp(\"x\") forbid(;");
    assert!(two.is_sorted_by_key(|one| one.line), "{two:?}");
}

#[test]
fn notes_of_ones_own_are_left_alone() {
    let text =
        "@id(\"a\") @description(\"why\") @x_ticket(\"42\") permit(principal, action, resource);";
    assert!(ask(&policies(text), &ada(), Action::Connect, &ssh()).obligations.is_none());
}

#[test]
fn huge_policies_are_refused_before_a_parser_sees_them() {
    let chain = |what: &str, times| {
        let condition = vec![what; times].join(" && ");
        format!("permit(principal, action, resource) when {{ {condition} }};")
    };
    let nested = |times: usize| {
        let (open, shut) = ("(".repeat(times), ")".repeat(times));
        format!("permit(principal, action, resource) when {{ {open}true{shut} }};")
    };
    let negated =
        format!("permit(principal, action, resource) when {{ {}true }};", "!".repeat(100_000));
    let elses = "if true then true else ".repeat(20_000);
    let elses = format!("permit(principal, action, resource) when {{ {elses} true }};");
    for text in [
        chain("true", 50_000),
        nested(100_000),
        negated,
        elses,
        "permit(principal, action, resource);".repeat(POLICIES_MAX + 1),
        " ".repeat(POLICY_BYTES_MAX + 1),
    ] {
        let wrong = complaints(&text);
        assert!(wrong[0].message.contains("more than") || wrong[0].message.contains("exceed"));
    }
    let many: Vec<_> = (0..=FILES_MAX).map(|_| file("")).collect();
    assert!(Policies::check(&many).is_err());
    let (string, most) = ("(".repeat(2000), chain("true", 200));
    let fine = format!("// {string}\n@description(\"{string}\") {most}");
    assert_eq!(policies(&fine).len(), 1);
    let everything = "permit(principal, action, resource);".repeat(POLICIES_MAX);
    assert_eq!(policies(&everything).len(), POLICIES_MAX);
}

#[test]
fn hostile_claims_stay_texts() {
    let policies = policies(
        "permit(principal in Group::\"ops\", action, resource);\n\
         permit(principal, action, resource) when { context.amr.contains(\"mfa\") };",
    );
    let evil = [
        "ops\" || true || \"",
        "Group::\"ops\"",
        "ops\0",
        "\u{202e}spo",
        "",
        "mfa\", \"",
        "'; DROP TABLE users; --",
        "{\"__entity\":{\"type\":\"Group\",\"id\":\"ops\"}}",
    ];
    for text in evil {
        let mut subject = Subject { name: text.into(), ..Subject::default() };
        let claims = &mut subject.claims;
        claims.groups.insert(text.into());
        claims.amr.insert(text.into());
        claims.device.insert(text.into(), text.into());
        claims.acr = Some(text.into());
        let decision = ask(&policies, &subject, Action::Connect, &ssh());
        assert!(!decision.allowed && decision.errors.is_empty(), "{text:?}: {decision:?}");
    }
    let mut most = ada();
    let long = "x".repeat(200);
    most.claims.groups = (0..GROUPS_MAX).map(|n| format!("{long}{n}")).collect();
    most.claims.amr = (0..ENTRIES_MAX).map(|n| format!("{long}{n}")).collect();
    assert!(!ask(&policies, &most, Action::Connect, &ssh()).allowed);
    most.claims.groups.insert("ops".into());
    assert!(ask(&policies, &most, Action::Connect, &ssh()).allowed);
}

#[test]
fn what_must_be_allowed_twice_has_the_strictest_of_both_and_a_denial_stands_for_itself() {
    let allowed = |id: &str, consent, rate_bits| {
        let obligations = Obligations { consent, rate_bits, ..Obligations::default() };
        let (deciding, errors) = (vec![id.to_owned()], vec![]);
        Decision { allowed: true, obligations, deciding, errors }
    };
    let notifies = allowed("b", Some(Consent::Notify), Some(9_000));
    let silent = allowed("a", None, Some(8_000));
    for both in [notifies.clone().and(silent.clone()), silent.and(notifies.clone())] {
        assert_eq!((both.consent(), both.obligations.rate_bits), (Consent::Required, Some(8_000)));
        assert_eq!(both.deciding, ["a", "b"]);
    }
    assert_eq!(notifies.clone().and(notifies.clone()), notifies);
    let denied = Decision { deciding: vec!["c".into()], ..Decision::default() };
    assert_eq!(notifies.clone().and(denied.clone()), denied);
    assert_eq!(denied.clone().and(notifies), denied);
}

#[test]
fn explain_says_which_policy_decided_and_what_would() {
    let policies = policies(
        "@id(\"ops\") permit(principal in Group::\"ops\", action, resource);\n\
         @id(\"office\") permit(principal, action, resource) when { context.locations.contains(\"office\") };\n\
         @id(\"mfa\") permit(principal, action, resource) when { context.amr.contains(\"mfa\") };",
    );
    let (subject, here, object) = (ada(), Circumstances::default(), ssh());
    let request = Request {
        subject: &subject,
        action: Action::Connect,
        object: &object,
        circumstances: &here,
    };
    let trial = policies.try_out(&request, &["office".into(), "home".into()]);
    assert!(!trial.decision.allowed);
    assert_eq!(trial.policies.len(), 3);
    assert!(trial.policies.iter().all(|verdict| !verdict.applies));
    assert_eq!(
        trial.would_allow,
        ["membership of the group `ops`", "a sign-in with `mfa`", "being at `office`"]
    );
}

#[test]
fn a_table_of_cases_passes_or_says_what_differs() {
    let policies = policies(
        "@id(\"p\") @no_udp permit(principal, action, resource) when { context.granted };",
    );
    let case = |text: &str| -> cases::Case { serde_json::from_str(text).unwrap() };
    let run = |text: &str| case(text).run(&policies).differs;
    let asked = "\"user\":\"ada\",\"action\":\"connect\",\"resource\":\"ssh\"";
    assert!(run(&format!("{{{asked},\"expect\":\"deny\"}}")).is_empty());
    let good = "\"granted\":true,\"obligations\":[\"no_udp\"],\"policies\":[\"p\"]";
    assert!(run(&format!("{{{asked},{good},\"expect\":\"allow\"}}")).is_empty());
    let wrong = run(&format!("{{{asked},{good},\"expect\":\"deny\"}}"));
    assert_eq!(wrong, ["expected deny, got allow"]);
    let bad = "\"granted\":true,\"obligations\":[],\"policies\":[\"q\"]";
    assert_eq!(run(&format!("{{{asked},{bad},\"expect\":\"allow\"}}")).len(), 2);
    assert_eq!(run(&format!("{{{asked},\"hour\":24,\"expect\":\"deny\"}}")).len(), 1);
}

fn ways(udp: UdpUse) -> Vec<&'static str> {
    match udp {
        UdpUse::Prefer => vec!["tcp", "relay", "direct"],
        UdpUse::RelayOnly => vec!["tcp", "relay"],
        UdpUse::Off => vec!["tcp"],
        UdpUse::Require => vec!["direct"],
    }
}

fn any_obligations() -> impl Strategy<Value = Obligations> {
    let limit = || proptest::option::of(1..1_000_000_u64);
    (any::<[bool; 3]>(), limit(), limit(), limit(), 0..3_u8).prop_map(
        |([no_udp, relay_only, direct_required], max, again, rate, consent)| Obligations {
            no_udp,
            relay_only,
            direct_required,
            max_session_s: max,
            reauthenticate_s: again,
            rate_bits: rate,
            consent: [None, Some(Consent::Notify), Some(Consent::Required)][usize::from(consent)],
        },
    )
}

proptest! {
    #[test]
    fn obligations_never_widen(a in any_obligations(), b in any_obligations(), udp in 0..4_usize) {
        let udp = [UdpUse::Prefer, UdpUse::Require, UdpUse::RelayOnly, UdpUse::Off][udp];
        let before = TransportPolicy { udp, standby: Standby::Cold };
        let both = a.and(&b);
        prop_assert_eq!(both, b.and(&a));
        prop_assert_eq!(both.and(&a), both);
        let stricter = |sum: Option<u64>, part: Option<u64>| part.is_none_or(|part| sum.is_some_and(|sum| sum <= part));
        for part in [&a, &b] {
            prop_assert!(stricter(both.max_session_s, part.max_session_s));
            prop_assert!(stricter(both.reauthenticate_s, part.reauthenticate_s));
            prop_assert!(stricter(both.rate_bits, part.rate_bits));
            prop_assert!(both.consent >= part.consent);
        }
        let alone = a.narrow(before);
        let after = both.narrow(before);
        for (wide, narrow) in [(Some(before), alone), (alone, after), (Some(before), after)] {
            let Some(narrow) = narrow else { continue };
            prop_assert!(wide.is_some(), "more came of less");
            let wide = ways(wide.unwrap_or_default().udp);
            prop_assert!(ways(narrow.udp).iter().all(|way| wide.contains(way)));
            prop_assert_eq!(narrow.standby, Standby::Cold);
        }
    }

    #[test]
    fn no_text_breaks_the_check(text in "\\PC{0,200}") {
        let _ = Policies::check(&[file(&text)]);
    }
}

#[test]
fn demands_that_exclude_each_other_leave_nothing() {
    let demand = |words: &[&str]| Obligations::from_words(words.iter().copied()).unwrap();
    let narrow = |words: &[&str], udp| {
        demand(words).narrow(TransportPolicy { udp, ..TransportPolicy::default() }).map(|it| it.udp)
    };
    assert_eq!(narrow(&["relay_only", "direct_required"], UdpUse::Prefer), None);
    assert_eq!(narrow(&["no_udp"], UdpUse::Require), None);
    assert_eq!(narrow(&["direct_required"], UdpUse::Off), None);
    assert_eq!(narrow(&["no_udp", "relay_only"], UdpUse::Prefer), Some(UdpUse::Off));
    assert_eq!(narrow(&["relay_only"], UdpUse::Off), Some(UdpUse::Off));
    assert_eq!(narrow(&["direct_required"], UdpUse::Prefer), Some(UdpUse::Require));
}
