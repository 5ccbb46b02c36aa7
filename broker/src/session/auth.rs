//! Credentials become an identity.

use std::hint::black_box;
use std::sync::Arc;

use levee_broker_core::permission::Permissions;
use levee_protocol::ids::AccountName;
use levee_protocol::wire::ConnectOptions;

/// Who may connect. The default lets everybody in.
#[derive(Clone, Debug, Default)]
pub struct AuthConfig {
    /// Users with passwords.
    pub users: Vec<User>,
    /// A token that anybody may use.
    pub token: Option<Secret>,
    /// Who clients are that bring no credentials, where others do.
    pub guest: Option<Identity>,
}

/// A user of the configuration.
#[derive(Clone, Debug)]
pub struct User {
    /// The name in CONNECT.
    pub name: String,
    /// The password.
    pub password: Secret,
    /// Where its subjects are.
    pub account: AccountName,
    /// What it may do there; `None` if everything.
    pub permissions: Option<Arc<Permissions>>,
}

impl User {
    /// Who a client is that is believed to be this user.
    #[must_use]
    pub fn identity(&self) -> Identity {
        Identity {
            permissions: self.permissions.clone(),
            ..Identity::unrestricted(self.account.clone(), self.name.clone())
        }
    }
}

/// A password or token, as configured. It does not show up in logs.
#[derive(Clone)]
pub struct Secret(String);

impl Secret {
    /// Takes the text of the configuration: the secret itself.
    #[must_use]
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// Whether `given` is the secret. How long that takes does not tell how much of it is right. For a hash it takes
    /// long on purpose: not on a thread that has something else to do.
    #[must_use]
    pub fn is(&self, given: &str) -> bool {
        if self.is_hash() {
            return bcrypt::verify(given, &self.0).unwrap_or(false);
        }
        let (secret, given) = (self.0.as_bytes(), given.as_bytes());
        let mut difference = secret.len() ^ given.len();
        for (at, byte) in given.iter().enumerate() {
            let expected = secret.get(at).copied().unwrap_or(0);
            difference |= usize::from(black_box(expected ^ byte));
        }
        black_box(difference) == 0
    }

    /// Whether the configuration gave a bcrypt hash instead of the secret itself.
    #[must_use]
    pub fn is_hash(&self) -> bool {
        ["$2a$", "$2b$", "$2x$", "$2y$"].iter().any(|prefix| self.0.starts_with(prefix))
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str("Secret")
    }
}

/// Who a client is, once it was believed.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Identity {
    /// Where its subjects are.
    pub account: AccountName,
    /// Its user name; for monitoring. A token shows as `[REDACTED]`.
    pub user: String,
    /// What it may do; `None` if everything.
    pub permissions: Option<Arc<Permissions>>,
}

impl Identity {
    /// Somebody who may do everything in an account.
    #[must_use]
    pub fn unrestricted(account: AccountName, user: impl Into<String>) -> Self {
        Self { account, user: user.into(), permissions: None }
    }
}

impl AuthConfig {
    /// Whether CONNECT has to carry credentials.
    #[must_use]
    pub fn is_required(&self) -> bool {
        !self.users.is_empty() || self.token.is_some()
    }

    /// Whether a client without credentials is turned away.
    #[must_use]
    pub fn turns_strangers_away(&self) -> bool {
        self.is_required() && self.guest.is_none()
    }

    /// Who a client is that did not send CONNECT, or sent one without credentials.
    #[must_use]
    pub fn anonymous(&self) -> Option<Identity> {
        if !self.is_required() {
            return Some(Identity::unrestricted(AccountName::global(), ""));
        }
        self.guest.clone()
    }

    /// Whether checking these credentials takes long.
    #[must_use]
    pub fn is_slow(&self, options: &ConnectOptions) -> bool {
        let known = self.users.iter().filter(|user| user.name == options.user).map(|user| &user.password);
        self.token.iter().chain(known).any(Secret::is_hash)
    }

    /// Checks the credentials of a CONNECT. `None` is a violation, whatever is wrong with them.
    #[must_use]
    pub fn identify(&self, options: &ConnectOptions) -> Option<Identity> {
        if !self.is_required() {
            return Some(Identity::unrestricted(AccountName::global(), &*options.user));
        }
        if options.user.is_empty() && options.pass.is_empty() && options.auth_token.is_empty() {
            return self.anonymous();
        }
        if let Some(secret) = &self.token
            && secret.is(&options.auth_token)
        {
            return Some(Identity::unrestricted(AccountName::global(), "[REDACTED]"));
        }
        let known = self.users.iter().find(|user| user.name == options.user);
        // An unknown user costs as much as a wrong password.
        let nobody = Secret::new("no user has this name");
        let secret = known.map_or(&nobody, |user| &user.password);
        let believed = secret.is(&options.pass);
        known.filter(|_| believed).map(User::identity)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn connect(user: &str, pass: &str, auth_token: &str) -> ConnectOptions {
        ConnectOptions {
            user: user.into(),
            pass: pass.into(),
            auth_token: auth_token.into(),
            ..ConnectOptions::default()
        }
    }

    fn user(name: &str, password: &str, account: &str) -> User {
        User {
            name: name.into(),
            password: Secret::new(password),
            account: AccountName::parse(account).unwrap(),
            permissions: None,
        }
    }

    #[test]
    fn without_configuration_everybody_is_in_the_global_account() {
        let open = AuthConfig::default();

        assert!(!open.is_required());
        assert_eq!(open.identify(&connect("x", "y", "")).unwrap().account, AccountName::global());
        assert!(open.anonymous().is_some());
    }

    #[test]
    fn only_the_right_password_of_that_user_is_believed() {
        let auth = AuthConfig {
            users: vec![user("ann", "secret", "A"), user("bob", "other", "B")],
            ..AuthConfig::default()
        };

        assert_eq!(auth.identify(&connect("ann", "secret", "")).unwrap().account.as_str(), "A");
        assert_eq!(auth.identify(&connect("bob", "other", "")).unwrap().account.as_str(), "B");
        for (name, password) in
            [("ann", "other"), ("ann", ""), ("ann", "secre"), ("ann", "secrets"), ("eve", "secret"), ("", "")]
        {
            assert_eq!(auth.identify(&connect(name, password, "")), None, "{name} {password}");
        }
        assert_eq!(auth.anonymous(), None);
    }

    #[test]
    fn a_token_is_believed_as_token_only() {
        let auth = AuthConfig { token: Some(Secret::new("t0k")), ..AuthConfig::default() };

        assert!(auth.identify(&connect("", "", "t0k")).is_some());
        assert_eq!(auth.identify(&connect("t0k", "", "")), None);
        assert_eq!(auth.identify(&connect("", "", "t0")), None);
        assert_eq!(auth.identify(&connect("", "", "")), None);
    }

    #[test]
    fn clients_without_credentials_are_guests_if_those_are_let_in() {
        let auth = AuthConfig {
            users: vec![user("guest", "g", "G")],
            guest: Some(Identity::unrestricted(AccountName::parse("G").unwrap(), "guest")),
            ..AuthConfig::default()
        };

        assert_eq!(auth.identify(&connect("", "", "")).unwrap().user, "guest");
        assert_eq!(auth.identify(&connect("guest", "wrong", "")), None);
    }

    #[test]
    fn a_hash_is_verified_and_is_not_a_password_itself() {
        let hash = bcrypt::hash("secret", 4).unwrap();
        let auth = AuthConfig {
            users: vec![
                user("ann", &hash, "A"),
                user("bob", "$2a$04$damaged", "B"),
                user("eve", "plain", "E"),
            ],
            ..AuthConfig::default()
        };

        assert_eq!(auth.identify(&connect("ann", "secret", "")).unwrap().user, "ann");
        assert_eq!(auth.identify(&connect("ann", "Secret", "")), None);
        assert_eq!(auth.identify(&connect("ann", &hash, "")), None);
        assert_eq!(auth.identify(&connect("bob", "$2a$04$damaged", "")), None);
        assert!(auth.is_slow(&connect("ann", "secret", "")) && !auth.is_slow(&connect("eve", "plain", "")));
    }

    #[test]
    fn secrets_stay_out_of_logs() {
        assert!(!format!("{:?}", Secret::new("hunter2")).contains("hunter2"));
    }
}
