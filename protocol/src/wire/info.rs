//! The documents of INFO and CONNECT: how server and client introduce themselves.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};

/// What INFO tells a client. Field order and what is left out when empty are nats-server's.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize)]
pub struct ServerInfo {
    /// The server's public nkey; a new one at each start.
    pub server_id: String,
    /// The configured name, or the id.
    pub server_name: String,
    /// The nats-server version whose features clients may expect; clients compare it.
    pub version: String,
    /// Always 1.
    pub proto: u32,
    /// Commit of the build.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub git_commit: String,
    /// Some clients expect a Go version here; never empty.
    pub go: String,
    /// Listen host as configured.
    pub host: String,
    /// Listen port.
    pub port: u16,
    /// Whether header blocks are understood.
    pub headers: bool,
    /// Whether CONNECT has to carry credentials.
    #[serde(skip_serializing_if = "is_false")]
    pub auth_required: bool,
    /// Whether the client has to start TLS now.
    #[serde(skip_serializing_if = "is_false")]
    pub tls_required: bool,
    /// Whether the client has to show a certificate.
    #[serde(skip_serializing_if = "is_false")]
    pub tls_verify: bool,
    /// Whether the client may start TLS.
    #[serde(skip_serializing_if = "is_false")]
    pub tls_available: bool,
    /// Bytes of header and body that this client may publish at once.
    pub max_payload: u64,
    /// Whether this server has JetStream.
    #[serde(skip_serializing_if = "is_false")]
    pub jetstream: bool,
    /// Advertised address, if any.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub ip: String,
    /// The number of the connection.
    #[serde(skip_serializing_if = "is_zero")]
    pub client_id: u64,
    /// The client's address as seen from here.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub client_ip: String,
    /// What to sign for nkey or JWT authentication.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub nonce: String,
    /// The cluster's name.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub cluster: String,
    /// Whether that name was made up.
    #[serde(skip_serializing_if = "is_false")]
    pub cluster_dynamic: bool,
    /// The JetStream domain.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub domain: String,
    /// Client listeners of the whole cluster, as `host:port`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub connect_urls: Vec<String>,
    /// WebSocket listeners of the whole cluster.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ws_connect_urls: Vec<String>,
    /// Lame duck: this server is about to stop; go elsewhere.
    #[serde(rename = "ldm", skip_serializing_if = "is_false")]
    pub lame_duck_mode: bool,
    /// Marks the INFO that follows the first PONG.
    #[serde(skip_serializing_if = "is_false")]
    pub connect_info: bool,
    /// The account the client ended up in; with `connect_info`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub remote_account: String,
    /// Whether that is the system account; with `connect_info`.
    #[serde(rename = "acc_is_sys", skip_serializing_if = "is_false")]
    pub account_is_system: bool,
    /// The JetStream API level.
    #[serde(rename = "api_lvl", skip_serializing_if = "is_zero")]
    pub api_level: u64,
    /// Public key that auth callouts encrypt to.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub xkey: String,
    /// Our own version: the one field that nats-server does not have. Clients ignore it, people and tools see
    /// what they are really connected to.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub levee: String,
}

/// What a client says in CONNECT. Unknown fields are ignored, and `null` means absent. An empty text means that
/// the client did not set it.
#[derive(Clone, Deserialize, Eq, PartialEq)]
#[serde(default)]
pub struct ConnectOptions {
    /// Confirm each op with `+OK`.
    #[serde(deserialize_with = "null_is_true")]
    pub verbose: bool,
    /// Check publish subjects, and complain.
    #[serde(deserialize_with = "null_is_true")]
    pub pedantic: bool,
    /// The client's opinion; nothing depends on it.
    #[serde(deserialize_with = "null_is_default")]
    pub tls_required: bool,
    /// Token authentication.
    #[serde(deserialize_with = "null_is_default")]
    pub auth_token: String,
    /// User name, or a token.
    #[serde(deserialize_with = "null_is_default")]
    pub user: String,
    /// Password.
    #[serde(deserialize_with = "null_is_default")]
    pub pass: String,
    /// The user's public nkey.
    #[serde(deserialize_with = "null_is_default")]
    pub nkey: String,
    /// Signature of the nonce.
    #[serde(rename = "sig", deserialize_with = "null_is_default")]
    pub signature: String,
    /// The user's JWT.
    #[serde(deserialize_with = "null_is_default")]
    pub jwt: String,
    /// The application's name for the connection.
    #[serde(deserialize_with = "null_is_default")]
    pub name: String,
    /// The client library's language.
    #[serde(deserialize_with = "null_is_default")]
    pub lang: String,
    /// The client library's version.
    #[serde(deserialize_with = "null_is_default")]
    pub version: String,
    /// 1 if INFO may be sent again; 0 otherwise. Others are refused.
    #[serde(deserialize_with = "null_is_default")]
    pub protocol: i64,
    /// Deliver the client's own messages to its own subscriptions.
    #[serde(deserialize_with = "null_is_true")]
    pub echo: bool,
    /// The client understands header blocks.
    #[serde(deserialize_with = "null_is_default")]
    pub headers: bool,
    /// Answer requests that nobody receives; needs headers.
    #[serde(deserialize_with = "null_is_default")]
    pub no_responders: bool,
    /// Legacy; any use is refused.
    #[serde(deserialize_with = "null_is_default")]
    pub account: String,
    /// Legacy; any use is refused.
    #[serde(deserialize_with = "null_is_default")]
    pub new_account: bool,
    /// A trusted proxy's signature.
    #[serde(rename = "proxy_sig", deserialize_with = "null_is_default")]
    pub proxy_signature: String,
}

/// A CONNECT document that is not one. The connection is closed without a word, as nats-server does.
#[derive(Debug, thiserror::Error)]
#[error("CONNECT with malformed JSON: {0}")]
pub struct MalformedConnect(#[from] serde_json::Error);

impl ConnectOptions {
    /// Reads the argument of CONNECT as nats-server does: names in any case, the last of two with one name counts,
    /// and text that is not UTF-8 is repaired.
    pub fn parse(json: &[u8]) -> Result<Self, MalformedConnect> {
        let fields: Option<Map<String, Value>> = serde_json::from_str(&String::from_utf8_lossy(json))?;
        let fields = fields.unwrap_or_default().into_iter();
        let fields: Map<String, Value> =
            fields.map(|(name, value)| (name.to_ascii_lowercase(), value)).collect();
        Ok(serde_json::from_value(Value::Object(fields))?)
    }

    /// What the protocol refuses whatever the credentials are: the exact `-ERR` text to close with.
    #[must_use]
    pub fn refusal(&self) -> Option<&'static str> {
        if !matches!(self.protocol, 0 | 1) {
            return Some("invalid client protocol");
        }
        if !self.account.is_empty() || self.new_account {
            return Some("Authorization Violation");
        }
        if self.no_responders && !self.headers {
            return Some("no responders requires headers support");
        }
        None
    }
}

/// What is in force before CONNECT, and for fields that CONNECT leaves out.
impl Default for ConnectOptions {
    fn default() -> Self {
        Self {
            verbose: true,
            pedantic: true,
            tls_required: false,
            auth_token: String::new(),
            user: String::new(),
            pass: String::new(),
            nkey: String::new(),
            signature: String::new(),
            jwt: String::new(),
            name: String::new(),
            lang: String::new(),
            version: String::new(),
            protocol: 0,
            echo: true,
            headers: false,
            no_responders: false,
            account: String::new(),
            new_account: false,
            proxy_signature: String::new(),
        }
    }
}

/// Leaves the secrets out: options end up in logs.
impl fmt::Debug for ConnectOptions {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("ConnectOptions")
            .field("user", &self.user)
            .field("nkey", &self.nkey)
            .field("name", &self.name)
            .field("lang", &self.lang)
            .field("version", &self.version)
            .field("protocol", &self.protocol)
            .field("verbose", &self.verbose)
            .field("pedantic", &self.pedantic)
            .field("echo", &self.echo)
            .field("headers", &self.headers)
            .field("no_responders", &self.no_responders)
            .finish_non_exhaustive()
    }
}

fn is_false(flag: &bool) -> bool {
    !flag
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

fn null_is_default<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(
    source: D,
) -> Result<T, D::Error> {
    Ok(Option::deserialize(source)?.unwrap_or_default())
}

fn null_is_true<'de, D: Deserializer<'de>>(source: D) -> Result<bool, D::Error> {
    Ok(Option::deserialize(source)?.unwrap_or(true))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn info_has_the_fields_and_the_order_of_nats_server() {
        let info = ServerInfo {
            server_id: "NAW6".into(),
            server_name: "n1".into(),
            version: "2.15.1".into(),
            proto: 1,
            git_commit: "b2fd3ef".into(),
            go: "go1.27.2".into(),
            host: "127.0.0.1".into(),
            port: 24301,
            headers: true,
            auth_required: true,
            max_payload: 1_048_576,
            jetstream: true,
            client_id: 25,
            client_ip: "127.0.0.1".into(),
            cluster: "C1".into(),
            connect_urls: vec!["127.0.0.1:24301".into(), "127.0.0.1:24302".into()],
            api_level: 5,
            xkey: "XC7F".into(),
            ..ServerInfo::default()
        };

        assert_eq!(
            serde_json::to_string(&info).unwrap(),
            concat!(
                r#"{"server_id":"NAW6","server_name":"n1","version":"2.15.1","proto":1,"git_commit":"b2fd3ef","#,
                r#""go":"go1.27.2","host":"127.0.0.1","port":24301,"headers":true,"auth_required":true,"#,
                r#""max_payload":1048576,"jetstream":true,"client_id":25,"client_ip":"127.0.0.1","cluster":"C1","#,
                r#""connect_urls":["127.0.0.1:24301","127.0.0.1:24302"],"api_lvl":5,"xkey":"XC7F"}"#,
            )
        );
    }

    #[test]
    fn fields_marked_always_are_there_when_empty() {
        assert_eq!(
            serde_json::to_string(&ServerInfo::default()).unwrap(),
            r#"{"server_id":"","server_name":"","version":"","proto":0,"go":"","host":"","port":0,"headers":false,"max_payload":0}"#
        );
    }

    #[test]
    fn an_empty_connect_is_verbose_pedantic_and_echoing() {
        let options = ConnectOptions::parse(b"{}").unwrap();

        assert_eq!(options, ConnectOptions::default());
        assert!(options.verbose && options.pedantic && options.echo);
        assert!(!options.headers && !options.no_responders);
    }

    #[test]
    fn null_is_the_same_as_absent() {
        let options = ConnectOptions::parse(
            br#"{"verbose":null,"echo":null,"user":null,"protocol":null,"headers":null}"#,
        );

        assert_eq!(options.unwrap(), ConnectOptions::default());
    }

    #[test]
    fn connect_takes_what_clients_send_and_ignores_what_it_does_not_know() {
        let options = ConnectOptions::parse(
            br#"{"verbose":false,"pedantic":false,"user":"a","pass":"b","sig":"s","lang":"go","version":"1.40.0",
                "protocol":1,"echo":false,"headers":true,"no_responders":true,"from_the_future":[1]}"#,
        )
        .unwrap();

        assert!(!options.verbose && !options.pedantic && !options.echo && options.headers);
        assert_eq!((&*options.user, &*options.pass, &*options.signature), ("a", "b", "s"));
        assert_eq!(options.protocol, 1);
        assert_eq!(options.refusal(), None);
    }

    #[test]
    fn names_of_fields_have_no_case_and_the_last_one_counts() {
        let options =
            ConnectOptions::parse(br#"{"Verbose":true,"verbose":true,"VERBOSE":true,"User":"ann"}"#);
        assert_eq!(options.unwrap().user, "ann");

        assert!(!ConnectOptions::parse(br#"{"verbose":true,"verbose":false}"#).unwrap().verbose);
        assert_eq!(ConnectOptions::parse(b"null").unwrap(), ConnectOptions::default());
        assert_eq!(ConnectOptions::parse(b"{\"name\":\"\xFF\"}").unwrap().name, "\u{FFFD}");
    }

    #[test]
    fn connect_is_refused_with_the_texts_of_the_protocol() {
        let refusal = |json: &str| ConnectOptions::parse(json.as_bytes()).unwrap().refusal();

        assert_eq!(refusal(r#"{"protocol":2}"#), Some("invalid client protocol"));
        assert_eq!(refusal(r#"{"protocol":-1}"#), Some("invalid client protocol"));
        assert_eq!(refusal(r#"{"no_responders":true}"#), Some("no responders requires headers support"));
        assert_eq!(refusal(r#"{"account":"A"}"#), Some("Authorization Violation"));
    }

    #[test]
    fn malformed_connect_documents_are_errors() {
        for json in ["", "{", "[]", "nope", "{} x", r#"{"verbose":"yes"}"#, r#"{"user":7}"#] {
            assert!(ConnectOptions::parse(json.as_bytes()).is_err(), "{json}");
        }
    }

    #[test]
    fn secrets_stay_out_of_logs() {
        let options = ConnectOptions {
            pass: "hunter2".into(),
            auth_token: "hunter2".into(),
            jwt: "hunter2".into(),
            signature: "hunter2".into(),
            ..ConnectOptions::default()
        };

        assert!(!format!("{options:?}").contains("hunter2"));
    }
}
