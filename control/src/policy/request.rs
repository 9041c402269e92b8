//! A question to the policies, and how Cedar is told of it.
use std::collections::{BTreeSet, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::{LazyLock, OnceLock};

use cedar_policy::{Context, Entity, EntityId, EntityTypeName, EntityUid, RestrictedExpression};
use serde::{Deserialize, Serialize};

use crate::claims::Claims;

/// What someone wants to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Action {
    /// Have a resource in the feed.
    See,
    /// Use a resource.
    Connect,
    /// Watch a session.
    ShadowView,
    /// Watch a session and type into it.
    ShadowControl,
    /// End a session.
    Kill,
    /// Administer the broker.
    Admin,
}

impl Action {
    /// Every action.
    pub const ALL: [Self; 6] =
        [Self::See, Self::Connect, Self::ShadowView, Self::ShadowControl, Self::Kill, Self::Admin];

    /// As policies write it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::See => "see",
            Self::Connect => "connect",
            Self::ShadowView => "shadow-view",
            Self::ShadowControl => "shadow-control",
            Self::Kill => "kill",
            Self::Admin => "admin",
        }
    }

    /// The action of this name.
    #[must_use]
    pub fn from_text(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|action| action.as_str() == text)
    }
}

/// Who asks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Subject {
    /// User name.
    pub name: String,
    /// An administrator by the database.
    pub admin: bool,
    /// How they signed in.
    pub claims: Claims,
    /// When they last proved who they are, Unix milliseconds.
    pub signed_in_ms: Option<u64>,
}

/// What is known of a resource.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ResourceFacts {
    /// Its name.
    pub name: String,
    /// `tcp` or `udp`.
    pub kind: String,
    /// Its tags.
    pub tags: BTreeSet<String>,
    /// Its folder, empty without one.
    pub folder: String,
}

impl ResourceFacts {
    /// One of which nothing but the name is known.
    pub fn named(name: impl Into<String>) -> Self {
        Self { name: name.into(), kind: "tcp".into(), ..Self::default() }
    }
}

/// What it is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Object {
    /// A resource: `see` and `connect`.
    Resource(ResourceFacts),
    /// A session: `kill`, `shadow-view` and `shadow-control`.
    Session {
        /// Its id.
        id: String,
        /// Whose it is.
        owner: String,
        /// What it uses.
        resource: ResourceFacts,
    },
    /// The broker: `admin`.
    Broker,
}

impl Object {
    /// A session of this id and owner, with its resource in each of these ways.
    pub(crate) fn sessions(
        id: &str,
        owner: &str,
        facts: impl IntoIterator<Item = ResourceFacts>,
    ) -> Vec<Self> {
        let session = |resource| Self::Session { id: id.into(), owner: owner.into(), resource };
        facts.into_iter().map(session).collect()
    }
}

/// What else is known at this moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Circumstances {
    /// Where the user's connection comes from.
    pub source: Option<IpAddr>,
    /// Names of the networks that is in.
    pub locations: BTreeSet<String>,
    /// Unix milliseconds.
    pub now_ms: u64,
    /// A grant of the database covers it.
    pub granted: bool,
    /// `udp` or `tcp`, as the client wishes.
    pub transport: Option<String>,
}

/// A question.
#[derive(Clone, Debug)]
pub struct Request<'a> {
    /// Who asks.
    pub subject: &'a Subject,
    /// What for.
    pub action: Action,
    /// About what.
    pub object: &'a Object,
    /// When, where from and how.
    pub circumstances: &'a Circumstances,
}

pub(super) static USER: LazyLock<EntityTypeName> = LazyLock::new(|| type_name("User"));
pub(super) static GROUP: LazyLock<EntityTypeName> = LazyLock::new(|| type_name("Group"));
pub(super) static RESOURCE: LazyLock<EntityTypeName> = LazyLock::new(|| type_name("Resource"));
pub(super) static SESSION: LazyLock<EntityTypeName> = LazyLock::new(|| type_name("Session"));
pub(super) static BROKER: LazyLock<EntityTypeName> = LazyLock::new(|| type_name("Broker"));
static DEVICE: LazyLock<EntityTypeName> = LazyLock::new(|| type_name("Device"));
static ACTION: LazyLock<EntityTypeName> = LazyLock::new(|| type_name("Action"));

fn type_name(name: &str) -> EntityTypeName {
    name.parse().expect("an identifier of the schema")
}

/// Ids are never parsed: whatever a claim holds stays one string.
pub(super) fn uid(of: &EntityTypeName, id: &str) -> EntityUid {
    EntityUid::from_type_name_and_id(of.clone(), EntityId::new(id))
}

pub(super) fn action_uid(action: Action) -> EntityUid {
    uid(&ACTION, action.as_str())
}

pub(super) fn broker() -> EntityUid {
    uid(&BROKER, "broker")
}

type Attributes = HashMap<String, RestrictedExpression>;

/// An object as Cedar takes it, made once for any number of questions.
#[derive(Clone, Debug)]
pub struct Thing {
    pub(super) uid: EntityUid,
    object: Object,
    /// Made when a policy looks at it: few do, and there may be many things.
    entities: OnceLock<Result<Vec<Entity>, String>>,
}

impl From<Object> for Thing {
    fn from(object: Object) -> Self {
        let uid = match &object {
            Object::Resource(facts) => uid(&RESOURCE, &facts.name),
            Object::Session { id, .. } => uid(&SESSION, id),
            Object::Broker => broker(),
        };
        Self { uid, object, entities: OnceLock::new() }
    }
}

impl PartialEq for Thing {
    fn eq(&self, other: &Self) -> bool {
        self.object == other.object
    }
}

impl Thing {
    pub(super) fn entities(&self) -> Result<&[Entity], String> {
        let entities = self.entities.get_or_init(|| self.object.entities(&self.uid));
        entities.as_deref().map_err(Clone::clone)
    }
}

impl Object {
    fn entities(&self, uid: &EntityUid) -> Result<Vec<Entity>, String> {
        match self {
            Self::Resource(facts) => Ok(vec![resource_entity(facts)?]),
            Self::Session { owner, resource, .. } => {
                let resource = resource_entity(resource)?;
                let owner = RestrictedExpression::new_entity_uid(self::uid(&USER, owner));
                let attributes = Attributes::from([("owner".into(), owner)]);
                let parents = HashSet::from([resource.uid()]);
                let session = entity(uid.clone(), attributes, parents)?;
                Ok(vec![resource, session])
            }
            Self::Broker => Ok(vec![Entity::with_uid(uid.clone())]),
        }
    }
}

pub(super) fn user(subject: &Subject, groups: &[EntityUid]) -> Result<Entity, String> {
    let attributes = Attributes::from([
        ("name".into(), text(&subject.name)),
        ("admin".into(), RestrictedExpression::new_bool(subject.admin)),
    ]);
    entity(uid(&USER, &subject.name), attributes, groups.iter().cloned().collect())
}

pub(super) fn device(subject: &Subject) -> Result<Entity, String> {
    let claims = subject.claims.device.iter();
    let tags = claims.map(|(name, value)| (name.clone(), text(value)));
    let device = uid(&DEVICE, "device");
    Entity::new_with_tags(device, [], [], tags).map_err(|error| error.to_string())
}

pub(super) fn context(subject: &Subject, here: &Circumstances) -> Result<Context, String> {
    let claims = &subject.claims;
    let mut pairs = vec![
        ("locations".to_owned(), set(&here.locations)),
        ("time".to_owned(), time(here.now_ms)?),
        ("granted".to_owned(), RestrictedExpression::new_bool(here.granted)),
        ("amr".to_owned(), set(&claims.amr)),
        ("device".to_owned(), RestrictedExpression::new_entity_uid(uid(&DEVICE, "device"))),
    ];
    let texts = [("issuer", &claims.issuer), ("acr", &claims.acr), ("transport", &here.transport)];
    for (name, value) in texts {
        pairs.extend(value.as_ref().map(|value| (name.to_owned(), text(value))));
    }
    if let Some(source) = here.source {
        let source = source.to_canonical().to_string();
        pairs.push(("source".to_owned(), RestrictedExpression::new_ip(source)));
    }
    if let Some(at) = subject.signed_in_ms {
        let ago = here.now_ms.saturating_sub(at) / 1000;
        pairs.push(("signed_in".to_owned(), long(ago)));
    }
    Context::from_pairs(pairs).map_err(|error| error.to_string())
}

fn resource_entity(facts: &ResourceFacts) -> Result<Entity, String> {
    let attributes = Attributes::from([
        ("name".into(), text(&facts.name)),
        ("kind".into(), text(&facts.kind)),
        ("tags".into(), set(&facts.tags)),
        ("folder".into(), text(&facts.folder)),
    ]);
    entity(uid(&RESOURCE, &facts.name), attributes, HashSet::new())
}

fn entity(
    uid: EntityUid,
    attributes: Attributes,
    parents: HashSet<EntityUid>,
) -> Result<Entity, String> {
    Entity::new(uid, attributes, parents).map_err(|error| error.to_string())
}

fn text(value: &str) -> RestrictedExpression {
    RestrictedExpression::new_string(value.to_owned())
}

fn set(values: &BTreeSet<String>) -> RestrictedExpression {
    RestrictedExpression::new_set(values.iter().map(|value| text(value)))
}

fn long(value: u64) -> RestrictedExpression {
    RestrictedExpression::new_long(i64::try_from(value).unwrap_or(i64::MAX))
}

/// 1 January 1970 was a Thursday.
fn time(now_ms: u64) -> Result<RestrictedExpression, String> {
    let unix = now_ms / 1000;
    let parts = [
        ("unix", unix),
        ("hour", unix / 3600 % 24),
        ("minute", unix / 60 % 60),
        ("weekday", (unix / 86_400 + 3) % 7 + 1),
    ];
    let parts = parts.map(|(name, value)| (name.to_owned(), long(value)));
    RestrictedExpression::new_record(parts).map_err(|error| error.to_string())
}

/// Unix seconds of the first moment after 4 January 1970 with this weekday (Monday is 1), hour and minute, UTC.
#[must_use]
pub const fn seconds_of(weekday: u64, hour: u64, minute: u64) -> u64 {
    // 5 January 1970 was a Monday.
    (4 + weekday - 1) * 86_400 + hour * 3600 + minute * 60
}
