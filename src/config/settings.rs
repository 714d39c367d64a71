//! From the words of a command line and the file that they name to one
//! [`Config`], as often as it is asked for.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::parser::ValueSource;
use clap::{ArgAction, ArgMatches, Args, Command, FromArgMatches};

use super::file::{File, Setting, replaces};
use super::{Config, ConfigError, FileError, RunArgs};

/// The options of `run`, as they were given on its command line and in its
/// environment. The file of `--config` is read by each [`Settings::load`].
#[derive(Clone, Debug)]
pub struct Settings {
    given: Vec<Given>,
    file: Option<PathBuf>,
}

#[derive(Clone, Debug)]
struct Given {
    flag: String,
    words: Vec<OsString>,
}

/// A configuration, and what is to be said of its file.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// The configuration.
    pub config: Config,
    /// Fields of KubeProxyConfiguration that are set and have no meaning here.
    pub ignored: Vec<String>,
}

impl Loaded {
    /// Tells of the fields that have no meaning here, in one event.
    pub fn tell_ignored(&self) {
        if !self.ignored.is_empty() {
            tracing::info!(
                fields = self.ignored.join(", "),
                "ignored of KubeProxyConfiguration: these have no meaning for this proxy"
            );
        }
    }
}

/// The command `run` with its options and nothing else.
pub(super) fn command() -> Command {
    RunArgs::augment_args(Command::new("run"))
}

/// As the options of `run`.
impl Args for Settings {
    fn augment_args(command: Command) -> Command {
        RunArgs::augment_args(command)
    }

    fn augment_args_for_update(command: Command) -> Command {
        RunArgs::augment_args_for_update(command)
    }
}

impl FromArgMatches for Settings {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        Ok(Self::new(matches))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::new(matches);
        Ok(())
    }
}

impl Settings {
    /// Takes what was given out of the matches of `run`.
    fn new(matches: &ArgMatches) -> Self {
        let command = command();
        let given = command.get_arguments().filter_map(|arg| {
            let (id, flag) = (arg.get_id().as_str(), arg.get_long()?);
            let values = matches.get_raw(id)?;
            let source = matches.value_source(id)?;
            // Set to nothing, a variable is not set.
            let stated = source == ValueSource::CommandLine
                || source == ValueSource::EnvVariable && values.clone().any(|v| !v.is_empty());
            let word = |value: &std::ffi::OsStr| {
                let mut word = OsString::from(format!("--{flag}"));
                if !matches!(arg.get_action(), ArgAction::SetTrue) {
                    word.push("=");
                    word.push(value);
                }
                word
            };
            stated.then(|| Given {
                flag: flag.to_owned(),
                words: values.map(word).collect(),
            })
        });
        Self {
            given: given.collect(),
            file: matches.get_one::<PathBuf>("config").cloned(),
        }
    }

    /// The file that is read.
    pub fn file(&self) -> Option<&PathBuf> {
        self.file.as_ref()
    }

    /// Reads the file and makes the configuration: what the command line says wins
    /// over the file, and that over defaults.
    ///
    /// # Errors
    ///
    /// [`ConfigError`], which names file, document and field, or the flag.
    pub fn load(&self) -> Result<Loaded, ConfigError> {
        let command = command();
        let mut file = match &self.file {
            Some(path) => File::read(path, &command)?,
            None => File::default(),
        };
        file.settings
            .retain(|flag, _| !self.given.iter().any(|won| replaces(&won.flag, flag)));
        let is_switch = |flag: &str| {
            let mut all = command.get_arguments();
            let arg = all.find(|arg| arg.get_long() == Some(flag));
            arg.is_some_and(|arg| matches!(arg.get_action(), ArgAction::SetTrue))
        };
        let mut words = vec![OsString::from("run")];
        for (flag, setting) in &file.settings {
            for value in &setting.values {
                match (is_switch(flag), value.as_str()) {
                    (true, "true") => words.push(format!("--{flag}").into()),
                    (true, _) => {}
                    (false, value) => words.push(format!("--{flag}={value}").into()),
                }
            }
        }
        words.extend(self.given.iter().flat_map(|given| given.words.clone()));
        let matches = command.clone().try_get_matches_from(words);
        let args = matches.and_then(|matches| RunArgs::from_arg_matches(&matches));
        // Each value alone was good: it is their being together.
        let args = args.map_err(|error| {
            let text = error.to_string();
            let line = text.lines().next().unwrap_or_default();
            let reason = line.strip_prefix("error: ").unwrap_or(line).to_owned();
            self.in_file(FileError::Together(reason))
        })?;
        let config = Config::try_from(args).map_err(|error| self.locate(error, &file))?;
        Ok(Loaded {
            config,
            ignored: file.ignored,
        })
    }

    /// An error of a flag whose value is the file's.
    fn locate(&self, error: ConfigError, file: &File) -> ConfigError {
        let flag = error.flag();
        let setting = flag.and_then(|flag| file.settings.get(flag.trim_start_matches("--")));
        match setting {
            Some(Setting {
                document, field, ..
            }) => {
                let mut reason = error.to_string();
                if let Some(cause) = std::error::Error::source(&error) {
                    reason = format!("{reason}: {cause}");
                }
                self.in_file(FileError::field(*document, field.clone(), reason))
            }
            None => error,
        }
    }

    fn in_file(&self, error: FileError) -> ConfigError {
        ConfigError::file(&self.file.clone().unwrap_or_default(), error)
    }
}
