//! `whimbrel token`: a token from the development key.

use std::process::ExitCode;

use serde_json::json;

use crate::cli::TokenArgs;
use crate::cli::access::no_dev_key;
use crate::cli::output::Out;
use crate::token::{self, Grant};

pub(super) fn run(args: &TokenArgs) -> anyhow::Result<ExitCode> {
    let keys = token::load_dev_keys(&args.data)?.ok_or_else(|| no_dev_key(&args.data, ""))?;
    let minted = keys.mint(&Grant { user: &args.user, device: args.device, epoch: args.epoch, ttl: args.ttl })?;
    let mut out = Out::stdout();
    if args.json {
        out.json(&json!({
            "token": minted.token,
            "user": args.user,
            "device": args.device,
            "epoch": args.epoch,
            "expires_at": minted.expires_at,
        }))?;
    } else {
        out.line(&minted.token)?;
    }
    Ok(ExitCode::SUCCESS)
}
