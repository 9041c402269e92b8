//! Every way Switchback says no: one enum, one table.
//!
//! A [`Code`] appears in CLI texts, in `--json` output, in API bodies, in logs and as a metric label. It is stable:
//! programs may match on it. [`Fault`] is a code with the particulars of one occasion.
use std::fmt;

use serde::{Deserialize, Serialize};
use utoipa::openapi::RefOr;
use utoipa::openapi::schema::{ObjectBuilder, Schema, Type};
use utoipa::{PartialSchema, ToSchema};

macro_rules! codes {
    ($($variant:ident $text:literal $exit:ident $remedy:literal;)+) => {
        /// A symbolic error code.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[non_exhaustive]
        pub enum Code {
            $(#[doc = $remedy] #[serde(rename = $text)] $variant,)+
        }

        impl Code {
            /// Every code, in the order of the table.
            pub const ALL: &[Self] = &[$(Self::$variant),+];

            /// The symbol, e.g. `TICKET_EXPIRED`.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text,)+ }
            }

            /// What to do about it, one sentence.
            #[must_use]
            pub const fn remedy(self) -> &'static str {
                match self { $(Self::$variant => $remedy,)+ }
            }

            /// The process exit status that goes with it.
            #[must_use]
            pub const fn exit(self) -> Exit {
                match self { $(Self::$variant => Exit::$exit,)+ }
            }
        }
    };
}

/// Process exit statuses, after BSD `sysexits.h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// The command or its configuration is wrong; the same command will fail again.
    Usage = 64,
    /// The other side sent or was given something malformed.
    Data = 65,
    /// Something needed is not reachable now.
    Unavailable = 69,
    /// A bug or an exhausted machine.
    Internal = 70,
    /// The operating system refused.
    System = 71,
    /// A refusal that may pass: try again.
    Temporary = 75,
    /// Not allowed.
    NoPermission = 77,
}

codes! {
    // The first bytes of a connection, judged by the gateway.
    HelloNotTls "HELLO_NOT_TLS" Data "Speak TLS on this port: only https:// and Switchback legs are served here.";
    HelloMalformed "HELLO_MALFORMED" Data "The TLS ClientHello could not be parsed; look for a middlebox that rewrites TLS.";
    HelloTooLarge "HELLO_TOO_LARGE" Data "The TLS ClientHello exceeds 16 KiB; send a smaller one.";
    HelloTimeout "HELLO_TIMEOUT" Temporary "The TLS ClientHello was not complete in time; check the path's loss and MTU.";
    HelloTruncated "HELLO_TRUNCATED" Temporary "The connection ended inside its TLS ClientHello; check the path for resets.";
    HelloLimit "HELLO_LIMIT" Temporary "Too many unfinished connections from this address; wait a few seconds.";
    // Admission to a gateway.
    TicketInvalid "TICKET_INVALID" Temporary "The ticket is forged, damaged, or for another gateway or an earlier run of it; ask for a new one.";
    TicketExpired "TICKET_EXPIRED" Temporary "Ask for a new ticket; if it happens at once, compare the clocks of broker and gateway.";
    TicketReplayed "TICKET_REPLAYED" Temporary "A ticket admits one leg once; ask for a new one.";
    TicketWrongSide "TICKET_WRONG_SIDE" Data "A client's ticket cannot admit an agent, nor the reverse.";
    LegUnpaired "LEG_UNPAIRED" Temporary "The other end never dialled the gateway; check that it can reach it, then try again.";
    LegDuplicate "LEG_DUPLICATE" Temporary "A leg of this side already waits under this ticket; ask for a new ticket.";
    LegLimit "LEG_LIMIT" Temporary "The gateway holds as many waiting legs as it may; try again shortly.";
    PairLimit "PAIR_LIMIT" Temporary "The gateway relays as many pairs as it may; raise its limits or add a gateway.";
    GatewayDraining "GATEWAY_DRAINING" Temporary "The gateway is shutting down; try again when it is back.";
    LegFailed "LEG_FAILED" Temporary "The connection through the gateway could not be made; it is retried within the resume window.";
    // Signing in, and what one may do.
    TokenInvalid "TOKEN_INVALID" NoPermission "The broker does not know this token; log in again with a fresh login or join string.";
    TokenRevoked "TOKEN_REVOKED" NoPermission "This token was revoked; ask an administrator for a new login or join string.";
    TokenExpired "TOKEN_EXPIRED" NoPermission "The sign-in has ended; run `switchback login` again.";
    JoinUsed "JOIN_USED" NoPermission "This join string was used as often as it may be; ask an administrator for another: `switchback token agent NAME` or `switchback token gateway NAME`.";
    JoinExpired "JOIN_EXPIRED" NoPermission "This join string is too old; ask an administrator for another: `switchback token agent NAME` or `switchback token gateway NAME`.";
    ProofInvalid "PROOF_INVALID" NoPermission "The proof of the end's key does not fit the request; update both ends to the same version, and remove enrolment.json from the state directory if it was copied.";
    ClockSkew "CLOCK_SKEW" Temporary "The clocks of this machine and of the broker differ; ends correct themselves by what the broker's shows, but have both set (NTP).";
    IdTokenInvalid "ID_TOKEN_INVALID" NoPermission "The provider's token was not accepted; sign in again, and if that repeats, compare issuer, client id and claims at both ends.";
    IdTokenExpired "ID_TOKEN_EXPIRED" NoPermission "The provider's token is over or not valid yet; sign in again, and if it happens at once, compare the clocks of provider and broker.";
    SigninRefused "SIGNIN_REFUSED" NoPermission "The provider did not sign you in; run `switchback login --oidc` again.";
    SigninOff "SIGNIN_OFF" Usage "This broker signs nobody in by OIDC: use a login string, or `switchback serve --oidc-issuer URL --oidc-client-id ID`.";
    UserNameTaken "USER_NAME_TAKEN" NoPermission "Another account has this user name here; ask an administrator, who may allow it by `serve --oidc-users link`.";
    ProviderUnreachable "PROVIDER_UNREACHABLE" Unavailable "The sign-in provider does not answer as it should; check its URL, its certificate, and that outbound HTTPS to it is allowed.";
    AdminOnly "ADMIN_ONLY" NoPermission "Only an administrator may do this.";
    ResourceUnknown "RESOURCE_UNKNOWN" NoPermission "No such resource in your feed; `switchback resources` lists what you may use.";
    ResourceNotGranted "RESOURCE_NOT_GRANTED" NoPermission "Ask an administrator: `switchback grant add USER RESOURCE`.";
    PolicyDenied "POLICY_DENIED" NoPermission "A policy does not allow this here and now; `switchback policy explain` tells an administrator which one, and what would.";
    PolicyConflict "POLICY_CONFLICT" NoPermission "What the policies demand of the transport leaves none; an administrator must mend the policies or the resource.";
    SessionExpired "SESSION_EXPIRED" NoPermission "A policy limits how long a session lasts; connect again.";
    PolicyInvalid "POLICY_INVALID" Usage "Mend the policies; `switchback policy check PATH` shows every error with its line and column.";
    Reauthenticate "REAUTHENTICATE" NoPermission "A policy asks for a younger sign-in; run `switchback login` again.";
    AuditFull "AUDIT_FULL" Temporary "The broker cannot write its audit records, so it decides nothing new; free its disk.";
    AgentOffline "AGENT_OFFLINE" Temporary "No agent that offers this resource is connected; start it, or wait for it to reconnect.";
    AgentDraining "AGENT_DRAINING" Temporary "Every agent that offers this resource takes no new sessions; try again later, or ask for `switchback agents undrain NAME`.";
    PoolFull "POOL_FULL" Temporary "Every agent that offers this resource serves as many sessions as it may; try again when one ends.";
    AgentUnknown "AGENT_UNKNOWN" Usage "No such agent; `switchback agents` lists them.";
    AgentNameTaken "AGENT_NAME_TAKEN" Usage "Another agent has this name; pass --name with a different one, or have an administrator end the other: `switchback token revoke ID`.";
    AgentNotAllowed "AGENT_NOT_ALLOWED" NoPermission "This join string or enrolment is for an agent of another name.";
    GatewayNameTaken "GATEWAY_NAME_TAKEN" Usage "Another gateway has this name; pass --name with a different one, or have an administrator end the other: `switchback token revoke ID`.";
    GatewayNotAllowed "GATEWAY_NOT_ALLOWED" NoPermission "This join string or enrolment is for a gateway of another name.";
    GatewayLimit "GATEWAY_LIMIT" Usage "A broker has 32 gateways at most, its own included; stop one and wait 90 s.";
    GatewayUnknown "GATEWAY_UNKNOWN" Usage "No such gateway; `switchback gateways` lists them.";
    SubjectUnknown "SUBJECT_UNKNOWN" Usage "No such user, token or grant; list them first.";
    RateLimited "RATE_LIMITED" Temporary "Too many requests; wait a moment.";
    // Sessions.
    SessionUnknown "SESSION_UNKNOWN" Usage "No such session; `switchback sessions` lists those you may see.";
    SessionKilled "SESSION_KILLED" NoPermission "Someone with the right to do so ended the session.";
    SessionLimit "SESSION_LIMIT" Temporary "The limit of sessions is reached; end one or try again later.";
    SessionLost "SESSION_LOST" Unavailable "No connection carried the session within its resume window; connect again.";
    SessionClosed "SESSION_CLOSED" Unavailable "The other end closed the session.";
    SessionProtocol "SESSION_PROTOCOL" Internal "The other end broke the session protocol; update both ends to the same version.";
    PeerKeyMismatch "PEER_KEY_MISMATCH" NoPermission "The other end is not who the broker said: something between may be tampering.";
    GrantInvalid "GRANT_INVALID" NoPermission "The session can no longer be resumed; connect again.";
    DirectRequired "DIRECT_REQUIRED" NoPermission "This resource is only served over a direct UDP path, and one of the ends does without UDP: start it without --no-udp, or ask for udp=prefer.";
    DirectUnavailable "DIRECT_UNAVAILABLE" Unavailable "No direct UDP path was found in time, and this resource demands one; `switchback netcheck` at both ends says what is in the way.";
    CandidateRefused "CANDIDATE_REFUSED" Data "An address that no peer may be sent to (loopback, multicast, the gateway itself); look for what reports it.";
    PingUnanswered "PING_UNANSWERED" Unavailable "Not one reply came; `switchback sessions` and `switchback explain ID` say where the session stands.";
    UdpUnavailable "UDP_UNAVAILABLE" System "UDP sockets could not be had: pass another --udp-ports range, or --no-udp to do without.";
    ClientOffline "CLIENT_OFFLINE" Temporary "The session's client has no link to the broker just now; try again when it is back.";
    ConsentRefused "CONSENT_REFUSED" NoPermission "The session's user does not want to be watched, or cannot be asked; --no-consent-prompt does without where that is permitted.";
    ConsentUnanswered "CONSENT_UNANSWERED" NoPermission "The session's user did not answer within 30 s; ask again, or with --no-consent-prompt where that is permitted.";
    ShadowNeedsControl "SHADOW_NEEDS_CONTROL" NoPermission "Watchers of this resource are connected to a service that takes input: use --control, or offer a view-only one with shadow-view=tcp:HOST:PORT.";
    ChannelLimit "CHANNEL_LIMIT" Temporary "This session carries as many connections as it may; close some.";
    // The service behind the agent.
    TargetRefused "TARGET_REFUSED" Unavailable "The service refused the agent's connection; is it running and listening there?";
    TargetTimeout "TARGET_TIMEOUT" Unavailable "The service did not answer the agent in time; check its address and firewall.";
    TargetUnreachable "TARGET_UNREACHABLE" Unavailable "The agent has no route to the service, or its name does not resolve.";
    TargetReset "TARGET_RESET" Unavailable "The service reset the connection.";
    // Messages.
    MessageMalformed "MESSAGE_MALFORMED" Data "The message is no valid JSON of the expected form.";
    MessageTooLarge "MESSAGE_TOO_LARGE" Data "Messages are at most 64 KiB.";
    ProtocolVersion "PROTOCOL_VERSION" Data "Broker and peer speak different protocol versions; update the older one.";
    NotFound "NOT_FOUND" Usage "No such address in the API.";
    // This machine.
    UsageInvalid "USAGE_INVALID" Usage "See --help.";
    ConfigInvalid "CONFIG_INVALID" Usage "Correct the configuration file or flag named above.";
    InviteInvalid "INVITE_INVALID" Usage "Copy the whole join or login string; it starts with sbjoin1_, sbgate1_ or sblogin1_.";
    NotLoggedIn "NOT_LOGGED_IN" Usage "Run `switchback login STRING`, or set SWITCHBACK_LOGIN.";
    DataDirUnusable "DATA_DIR_UNUSABLE" System "Make the data directory writable for this user, or pass another with --data.";
    DataCorrupt "DATA_CORRUPT" System "Restore the data directory from a backup, or move it away to start anew.";
    AddressInUse "ADDRESS_IN_USE" System "Another program listens there; stop it or pass another --listen address.";
    AddressUnavailable "ADDRESS_UNAVAILABLE" System "This machine does not have that address; pass another --listen address.";
    TakeoverNone "TAKEOVER_NONE" Unavailable "Start without --takeover: no server that can hand over uses this data directory.";
    TakeoverMismatch "TAKEOVER_MISMATCH" Usage "Pass the --listen address of the running server; to change it, stop that server and start anew.";
    TakeoverBusy "TAKEOVER_BUSY" Temporary "Another new process is taking over already; wait for it.";
    TakeoverFailed "TAKEOVER_FAILED" Unavailable "The running server goes on; its log and this one say why. Mend that, then try again.";
    PortNotPermitted "PORT_NOT_PERMITTED" NoPermission "Ports below 1024 need a privilege: `setcap cap_net_bind_service=+ep` on the binary, or --listen with a higher port.";
    CertificateUnusable "CERTIFICATE_UNUSABLE" Usage "Pass a PEM certificate chain and its matching private key.";
    UringUnavailable "URING_UNAVAILABLE" System "Allow io_uring (kernel 6.1+, seccomp, kernel.io_uring_disabled=0), or pass --io auto.";
    TuningUnsupported "TUNING_UNSUPPORTED" System "This kernel does not do what the tuning asks; follow the text, or leave that option out.";
    BrokerUnreachable "BROKER_UNREACHABLE" Unavailable "Check the broker's address, that it runs, and that outbound TCP to it is allowed.";
    BrokerPinMismatch "BROKER_PIN_MISMATCH" NoPermission "The certificate is not the one in your string: TLS interception, or the broker has a new key. Ask for a new string.";
    CheckFailed "CHECK_FAILED" Internal "Bytes arrived changed or not at all; please report it with the log.";
    Internal "INTERNAL" Internal "This is a bug or an exhausted machine; see the log.";
}

impl Code {
    /// The code with this symbol, if there is one.
    #[must_use]
    pub fn from_symbol(symbol: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|code| code.as_str() == symbol)
    }

    /// Whether trying the same again may help.
    #[must_use]
    pub fn is_temporary(self) -> bool {
        matches!(self.exit(), Exit::Temporary | Exit::Unavailable)
    }

    /// This code with the particulars of one occasion.
    pub fn because(self, detail: impl Into<String>) -> Fault {
        Fault { code: self, detail: detail.into() }
    }
}

// By hand: the derived schema would not know the symbols, which the macro writes.
impl PartialSchema for Code {
    fn schema() -> RefOr<Schema> {
        let symbols = Self::ALL.iter().map(|code| code.as_str());
        ObjectBuilder::new()
            .schema_type(Type::String)
            .description(Some("A symbolic error code."))
            .enum_values(Some(symbols))
            .into()
    }
}

impl ToSchema for Code {}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl From<switchback_engine::Refusal> for Code {
    fn from(refusal: switchback_engine::Refusal) -> Self {
        Self::from_symbol(refusal.as_str()).unwrap_or(Self::LegFailed)
    }
}

/// A code and what happened, in words. Never holds a secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fault {
    /// The symbolic code.
    pub code: Code,
    /// What happened, without the remedy.
    #[serde(rename = "message")]
    pub detail: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.code, self.detail)
    }
}

impl std::error::Error for Fault {}

impl From<Code> for Fault {
    fn from(code: Code) -> Self {
        code.because(code.remedy())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_round_trips_through_its_symbol_and_teaches() {
        for &code in Code::ALL {
            assert_eq!(Code::from_symbol(code.as_str()), Some(code));
            assert_eq!(serde_json::to_string(&code).unwrap(), format!("\"{code}\""));
            assert!(code.remedy().ends_with(['.', '?']), "{code} needs a whole sentence");
        }
    }

    #[test]
    fn every_gateway_refusal_has_a_code_of_the_same_name() {
        for refusal in switchback_engine::Refusal::ALL {
            assert_eq!(Code::from(refusal).as_str(), refusal.as_str());
        }
    }
}
