//! Whatever is prepared, left out or asked once for many: the answers are those of the whole set to each question by itself.
use std::collections::BTreeSet;
use std::sync::LazyLock;

use proptest::prelude::*;
use proptest::sample::{select, subsequence};

use super::*;
use crate::claims::Claims;
use crate::policy::{Object, PolicyFile, ResourceFacts};

const PRINCIPALS: [&str; 7] = [
    "principal",
    "principal == User::\"ada\"",
    "principal == User::\"bob\"",
    "principal in Group::\"ops\"",
    "principal in User::\"ada\"",
    "principal is User",
    "principal is User in Group::\"dev\"",
];

const ACTIONS: [&str; 4] = [
    "action",
    "action == Action::\"see\"",
    "action in [Action::\"see\", Action::\"connect\"]",
    "action in [Action::\"kill\", Action::\"see\"]",
];

const RESOURCES: [&str; 6] = [
    "resource",
    "resource == Resource::\"ssh\"",
    "resource in Resource::\"ssh\"",
    "resource is Resource",
    "resource is Session in Resource::\"ssh\"",
    "resource == Session::\"s1\"",
];

const CONDITIONS: [&str; 13] = [
    "",
    "when { context.granted }",
    "unless { principal.admin }",
    "when { principal in Group::\"ops\" }",
    "when { context.time.hour >= 12 } // not the resource",
    "when { context.time.unix * 9223372036854775807 > 5 }",
    "when { context.device.hasTag(\"os\") && context.device.getTag(\"os\") == \"linux\" }",
    "when { User::\"ada\".admin }",
    "when { Resource::\"ssh\".tags.contains(\"prod\") }",
    "when { resource == Resource::\"web\" }",
    "when { resource.tags.contains(\"prod\") }",
    "when { resource.owner == principal }",
    "unless { resource.name like \"s*\" && [resource, Resource::\"web\"].contains(Resource::\"web\") }",
];

/// Every policy of such parts that the schema allows.
static SOUND: LazyLock<Vec<String>> = LazyLock::new(|| {
    let mut sound = Vec::new();
    for effect in ["permit", "@rate(\"10mbit\") permit", "@consent(\"notify\") permit", "forbid"] {
        for (principal, action) in PRINCIPALS.iter().flat_map(|it| ACTIONS.map(|at| (it, at))) {
            for (resource, condition) in
                RESOURCES.iter().flat_map(|it| CONDITIONS.map(|at| (it, at)))
            {
                let (condition, note) = condition.split_once("//").unwrap_or((condition, ""));
                let text = format!("{effect}({principal}, {action}, {resource}) {condition};");
                let text = format!("// {note}\n{text}");
                if checked(&text).is_ok() {
                    sound.push(text);
                }
            }
        }
    }
    sound
});

fn checked(text: &str) -> Result<Policies, Vec<crate::policy::Complaint>> {
    Policies::check(&[PolicyFile { name: "test.cedar".into(), text: text.into() }])
}

fn subjects() -> impl Strategy<Value = Subject> {
    let groups = subsequence(vec!["ops", "dev", "staff"], 0..=3);
    (select(vec!["ada", "bob"]), groups, any::<[bool; 2]>()).prop_map(
        |(name, groups, [admin, linux])| {
            let device = linux.then(|| ("os".to_owned(), "linux".to_owned()));
            let claims = Claims {
                groups: groups.into_iter().map(str::to_owned).collect(),
                device: device.into_iter().collect(),
                ..Claims::default()
            };
            Subject { name: name.into(), admin, claims, signed_in_ms: Some(1) }
        },
    )
}

fn objects() -> impl Strategy<Value = Object> {
    let facts = (select(vec!["ssh", "web", "db"]), any::<bool>()).prop_map(|(name, prod)| {
        let tags = prod.then(|| "prod".to_owned()).into_iter().collect();
        ResourceFacts { tags, ..ResourceFacts::named(name) }
    });
    let session = (select(vec!["s1", "s2"]), select(vec!["ada", "bob"]), facts.clone());
    prop_oneof![
        4 => facts.prop_map(Object::Resource),
        2 => session.prop_map(|(id, owner, resource)| {
            Object::Session { id: id.into(), owner: owner.into(), resource }
        }),
        1 => Just(Object::Broker),
    ]
}

/// The whole set is asked, with everything that is known of the subject, and of one object.
fn plainly(
    policies: &Policies,
    subject: &Subject,
    action: Action,
    object: &Object,
    here: &Circumstances,
) -> Decision {
    let groups: Vec<_> =
        subject.claims.groups.iter().map(|it| request::uid(&request::GROUP, it)).collect();
    let thing = Thing::from(object.clone());
    let mut entities = thing.entities().unwrap().to_vec();
    entities.push(request::user(subject, &groups).unwrap());
    entities.push(request::device(subject).unwrap());
    let entities = Entities::from_entities(entities, None).unwrap();
    let asked = cedar_policy::Request::new(
        request::uid(&request::USER, &subject.name),
        request::action_uid(action),
        thing.uid.clone(),
        request::context(subject, here).unwrap(),
        None,
    );
    let response = Authorizer::new().is_authorized(&asked.unwrap(), &policies.set, &entities);
    let (mut errors, mut broken) = (Vec::new(), BTreeSet::new());
    for error in response.diagnostics().errors() {
        let AuthorizationError::PolicyEvaluationError(inner) = error;
        let policy = policies.set.policy(inner.policy_id()).unwrap();
        broken.extend((policy.effect() == Effect::Forbid).then(|| policy.id().to_string()));
        errors.push(error.to_string());
    }
    errors.sort_unstable();
    if !broken.is_empty() {
        let deciding = broken.into_iter().collect();
        return Decision { deciding, errors, ..Decision::default() };
    }
    let allowed = response.decision() == Verdict::Allow;
    let reason = || response.diagnostics().reason();
    let binding = reason().filter_map(|id| policies.obligations.get(id)).filter(|_| allowed);
    let obligations = binding.fold(Obligations::default(), |sum, more| sum.and(more));
    let deciding: BTreeSet<_> = reason().map(ToString::to_string).collect();
    Decision { allowed, obligations, deciding: deciding.into_iter().collect(), errors }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn many_are_decided_as_each_by_itself_and_by_all_policies(
        policies in subsequence(SOUND.clone(), 0..=8),
        subject in subjects(),
        action in select(Action::ALL.to_vec()),
        objects in proptest::collection::vec(objects(), 1..6),
        granted in any::<bool>(),
        hour in 0..24_u64,
    ) {
        let policies = checked(&policies.join("\n")).unwrap();
        let here = Circumstances { granted, now_ms: hour * 3_600_000, ..Circumstances::default() };
        let asker = policies.asker(&subject, action, &here);
        for object in objects {
            let thing = Thing::from(object.clone());
            let expected = plainly(&policies, &subject, action, &object, &here);
            prop_assert_eq!(&asker.decide(&thing), &expected);
            prop_assert_eq!(&asker.decide(&thing), &expected, "the second time");
            let request =
                super::super::Request { subject: &subject, action, object: &object, circumstances: &here };
            prop_assert_eq!(policies.decide(&request), expected);
        }
    }
}

#[test]
fn what_looks_at_no_resource_is_asked_once_and_what_is_for_others_not_at_all() {
    let text = "permit(principal, action == Action::\"see\", resource) when { context.granted };\n\
                permit(principal in Group::\"ops\", action == Action::\"see\", resource) when { resource.kind == \"tcp\" };\n\
                permit(principal, action == Action::\"kill\", resource);\n\
                permit(principal, action == Action::\"see\", resource == Resource::\"ssh\");";
    let policies = checked(text).unwrap();
    let here = Circumstances { granted: true, ..Circumstances::default() };
    let each_and_one = |groups: &[&str]| {
        let groups = groups.iter().map(|&group| group.to_owned()).collect();
        let claims = Claims { groups, ..Claims::default() };
        let subject = Subject { name: "ada".into(), claims, ..Subject::default() };
        let asker = policies.asker(&subject, Action::See, &here);
        let ready = asker.ready.as_ref().unwrap();
        assert_eq!(ready.votes.permits.len(), 1);
        (ready.each.len(), ready.one.len())
    };
    assert_eq!(each_and_one(&[]), (0, 1));
    assert_eq!(each_and_one(&["ops"]), (1, 1));
}
