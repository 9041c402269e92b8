//! The OpenAPI document (version 3.1) of the API, made of the routes as they are registered.
use axum::Extension;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use bytes::Bytes;
use utoipa::openapi::path::Operation;
use utoipa::openapi::security::{Http, HttpAuthScheme, SecurityScheme};
use utoipa::openapi::{
    Components, ContentBuilder, InfoBuilder, OpenApi, OpenApiBuilder, Ref, ResponseBuilder,
};
use utoipa::{PartialSchema, ToSchema};

use super::answer::status;
use crate::api::ErrorBody;
use crate::code::Code;

const ABOUT: &str = "The broker's API. Every request but the few marked so carries `Authorization: Bearer TOKEN`, a \
user's token; a scope of `admin` asks for an administrator's, `agent` and `gateway` for an assertion by the key of an \
enrolled end, `join` for a join string's token. Every refusal is an `ErrorBody` with \
a symbolic code. Bodies are at most 64 KiB, heads 16 KiB; a user has 256 requests a second (4,096 at once). Callers may \
name their request in `x-request-id`; every answer has that header, and the broker's log the same name.";
/// The security scheme.
const BEARER: &str = "bearer";

/// The document as it is served.
#[derive(Clone)]
pub(super) struct Text(Bytes);

impl Text {
    pub(super) fn of(document: &OpenApi) -> Self {
        // Nothing in it can fail to be written.
        Self(document.to_json().unwrap_or_default().into())
    }
}

/// This document.
#[utoipa::path(get, path = "/v1/openapi.json", tag = "operations", security(()),
    responses((status = 200, description = "OpenAPI 3.1.", body = Object, content_type = "application/json")))]
pub(super) async fn show(Extension(Text(text)): Extension<Text>) -> impl IntoResponse {
    ([(CONTENT_TYPE, "application/json")], text)
}

/// The document without a route.
pub(super) fn head() -> OpenApi {
    let info = InfoBuilder::new()
        .title("Switchback broker")
        .version(env!("CARGO_PKG_VERSION"))
        .description(Some(ABOUT))
        .build();
    let mut schemas = Vec::new();
    ErrorBody::schemas(&mut schemas);
    let mut components = Components::new();
    components.schemas.extend(schemas);
    components.schemas.insert(ErrorBody::name().into_owned(), ErrorBody::schema());
    let scheme = SecurityScheme::Http(Http::new(HttpAuthScheme::Bearer));
    components.add_security_scheme(BEARER, scheme);
    OpenApiBuilder::new().info(info).components(Some(components)).build()
}

/// The document with the refusals that every route has, by what it asks for.
pub(super) fn finished(mut document: OpenApi) -> OpenApi {
    for item in document.paths.paths.values_mut() {
        let operations =
            [&mut item.get, &mut item.post, &mut item.put, &mut item.delete, &mut item.patch];
        operations.into_iter().flatten().for_each(add_refusals);
    }
    document
}

fn add_refusals(operation: &mut Operation) {
    let open = operation.security.iter().flatten().all(|it| *it == Default::default());
    let by_parameter = operation.parameters.as_ref().is_some_and(|all| !all.is_empty());
    let mut possible = vec![400, 500];
    if !open {
        possible.extend([401, 403, 429]);
    }
    if by_parameter {
        possible.push(404);
    }
    if operation.request_body.is_some() {
        possible.extend([404, 413]);
    }
    for code in possible {
        let refusal = || {
            let body = ContentBuilder::new().schema(Some(Ref::from_schema_name("ErrorBody")));
            let body = body.build();
            let response = ResponseBuilder::new().description(codes(code));
            response.content("application/json", body).build().into()
        };
        operation.responses.responses.entry(code.to_string()).or_insert_with(refusal);
    }
}

/// The codes that come with this status.
fn codes(code: u16) -> String {
    if code == 500 {
        return "INTERNAL, DATA_DIR_UNUSABLE: the broker's log says more.".into();
    }
    let all = Code::ALL.iter().filter(|it| status(**it).as_u16() == code);
    all.map(|code| code.as_str()).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::super::document;

    #[test]
    fn every_route_says_who_may_use_it_and_what_it_answers() {
        let document = serde_json::to_value(document()).unwrap();
        let paths = document["paths"].as_object().unwrap();
        assert!(paths.len() >= 14, "{paths:?}");
        for (path, item) in paths {
            for (method, operation) in item.as_object().unwrap() {
                let text = |name: &str| operation[name].as_str().unwrap_or_default();
                assert!(!text("summary").is_empty(), "{method} {path} has no summary");
                assert!(operation["security"].is_array(), "{method} {path} names no role");
                let answers = operation["responses"].as_object().unwrap();
                let open = operation["security"] == serde_json::json!([{}]);
                assert_eq!(answers.contains_key("401"), !open, "{method} {path}");
                assert!(answers.keys().any(|code| code < &"300".to_owned()), "{method} {path}");
            }
        }
    }

    #[test]
    fn every_reference_leads_somewhere() {
        let document = serde_json::to_value(document()).unwrap();
        let text = document.to_string();
        for reference in text.split("\"$ref\":\"#/components/schemas/").skip(1) {
            let name = reference.split('"').next().unwrap();
            assert!(document["components"]["schemas"][name].is_object(), "{name}");
        }
        assert!(text.contains("TOKEN_REVOKED") && document["openapi"] == "3.1.0");
    }

    #[test]
    fn no_route_escapes_the_document() {
        let source = include_str!("mod.rs");
        assert!(!source.contains(".route("), "register handlers with `.routes(routes!(...))`");
    }
}
