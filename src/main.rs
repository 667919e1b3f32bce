//! The command line program: parse, run, print the error chain once, exit code.

#![warn(clippy::print_stderr, reason = "it panics where nobody listens; `report::tell` does not")]

use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{CommandFactory, Parser};
use mbqc::cli::{Cli, Command};
use mbqc::report::tell;
use mbqc::{Error, commands, pipeline};

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Nobody listening is no error.
            let _ = error.print();
            let several = std::env::args().any(|argument| argument == "--include" || argument == "--exclude");
            let left_over = matches!(
                error.kind(),
                ErrorKind::UnknownArgument | ErrorKind::ArgumentConflict | ErrorKind::InvalidSubcommand
            );
            if left_over && several {
                tell("one glob follows --include or --exclude: repeat the option for more, and put globs into quotes");
            }
            if let Some(word) = misspelt().filter(|_| error.exit_code() == 2) {
                let commands: Vec<String> = Cli::command().get_subcommands().map(|c| c.get_name().to_owned()).collect();
                tell(&format!("`{word}` is neither a file nor a command; the commands are {}", commands.join(", ")));
            }
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
        }
    };
    if let Err(error) = mbqc_kernels::Isa::from_environment() {
        tell(&format!("error: {}: {error}", mbqc_kernels::ISA_VARIABLE));
        return ExitCode::from(2);
    }
    match run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let mut told = error.to_string();
            tell(&format!("error: {told}"));
            let mut source = std::error::Error::source(&error);
            while let Some(cause) = source {
                let text = cause.to_string();
                if !told.contains(&text) {
                    tell(&format!("  caused by: {text}"));
                    told = text;
                }
                source = cause.source();
            }
            ExitCode::from(error.exit_code())
        }
    }
}

/// The first argument, if it looks like a command and there is no such file.
fn misspelt() -> Option<String> {
    let word = std::env::args().nth(1)?;
    let plain = word.chars().all(|c| c.is_ascii_lowercase());
    let known = Cli::command().get_subcommands().any(|command| command.get_name() == word) || word == "help";
    (plain && !known && !std::path::Path::new(&word).exists()).then_some(word)
}

fn run(cli: Cli) -> Result<(), Error> {
    match cli.command {
        None => pipeline::main_job(&cli.compile),
        Some(Command::Apply { model, plan, output, emit, common }) => {
            commands::apply(&model, &plan, &output, &emit, &common)
        }
        Some(Command::Inspect { model, text, diff, calib, image_token_id, common }) => {
            let what = commands::InspectRequest { model, text, diff, calib, image_token_id };
            commands::inspect(&what, &common)
        }
        Some(Command::Verify { fp, quantized, data, samples, image_token_id, logits, common }) => {
            let what = commands::VerifyRequest { fp, quantized, data, samples, image_token_id, logits };
            commands::verify(&what, &common)
        }
        Some(Command::Run { model, inputs, outputs, repeat, common }) => {
            commands::run(&model, &inputs, &outputs, repeat, &common)
        }
        Some(Command::Bench { model, rows, seconds, outliers, device, common }) => {
            commands::bench(&commands::BenchRequest { model, rows, seconds, outliers, device }, &common)
        }
        Some(Command::Bake { model, output, common }) => commands::bake(&model, &output, &common),
        Some(Command::Devices { common }) => commands::devices(&common),
        Some(Command::List { what }) => commands::list(what),
        Some(Command::Explain { name }) => commands::explain(&name),
    }
}
