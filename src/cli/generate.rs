//! `completions` and `man`: what shells and readers are told of the command line,
//! made from the command line itself.

use std::fs;
use std::io::Cursor;
use std::path::PathBuf;

use clap::{Args, Command};
use clap_complete::Shell;
use clap_mangen::Man;

use super::{Failure, Status, print};

#[derive(Args, Debug)]
pub(super) struct CompletionsArgs {
    /// The shell whose completions are printed
    shell: Shell,
}

#[derive(Args, Debug)]
pub(super) struct ManArgs {
    /// Directory that gets a page for each command; without it, the page of the program
    /// itself is printed
    directory: Option<PathBuf>,
}

pub(super) fn completions(args: &CompletionsArgs, mut command: Command) -> Result<(), Failure> {
    let mut script = Cursor::new(Vec::new());
    let name = command.get_name().to_owned();
    clap_complete::generate(args.shell, &mut command, name, &mut script);
    print(&String::from_utf8_lossy(&script.into_inner()))
}

pub(super) fn man(args: &ManArgs, command: Command) -> Result<(), Failure> {
    let failed = |error| Failure::new(Status::Failed, &error);
    let pages = pages(command).map_err(failed)?;
    let Some(directory) = &args.directory else {
        let page = pages.first().map(|(_, page)| page.as_str());
        return print(page.unwrap_or_default());
    };
    fs::create_dir_all(directory).map_err(failed)?;
    for (file, page) in pages {
        fs::write(directory.join(file), page).map_err(failed)?;
    }
    Ok(())
}

/// Name and text of each page, the program's first.
fn pages(command: Command) -> std::io::Result<Vec<(String, String)>> {
    let mut command = command.disable_help_subcommand(true);
    command.build();
    let subcommands = command.get_subcommands().filter(|sub| !sub.is_hide_set());
    let all = [&command].into_iter().chain(subcommands);
    let page = |command: &Command| {
        let man = Man::new(command.clone());
        let mut page = Vec::new();
        man.render(&mut page)?;
        Ok((
            man.get_filename(),
            String::from_utf8_lossy(&page).into_owned(),
        ))
    };
    all.map(page).collect()
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;
    use crate::cli::Cli;

    #[test]
    fn every_command_has_a_page_with_all_its_flags() {
        let pages = pages(Cli::command()).unwrap();
        assert_eq!(pages[0].0, "kube-tun-proxy.1");
        let command = Cli::command();
        for sub in command.get_subcommands() {
            let file = format!("kube-tun-proxy-{}.1", sub.get_name());
            let (_, page) = pages.iter().find(|page| page.0 == file).unwrap();
            let title = format!(".TH kube-tun-proxy-{} 1", sub.get_name());
            assert!(page.contains(&title), "{file} has no {title}");
            for flag in sub.get_arguments().filter_map(|arg| arg.get_long()) {
                let flag = format!("\\-\\-{}", flag.replace('-', "\\-"));
                assert!(page.contains(&flag), "{file} lacks {flag}");
            }
            let listed = format!("{}(1)", file.trim_end_matches(".1").replace('-', "\\-"));
            assert!(
                pages[0].1.contains(&listed),
                "the first page lacks {listed}"
            );
        }
    }
}
