//! The wallet of a running node: what there is, and what is sent.

use floe_core::AttoFil;
use floe_core::ports::Entropy;
use serde_json::{Value, json};

use super::{Call, Client};
use crate::cli::WalletCommand;
use crate::output::{Output, printable};

/// Runs a `floe wallet` command that needs a running node.
pub(crate) async fn wallet(
    client: &Client,
    out: Output,
    command: WalletCommand,
    entropy: &dyn Entropy,
) -> anyhow::Result<()> {
    let (path, body) = match command {
        WalletCommand::Fund { amount } => ("fund", json!({ "amount": amount })),
        WalletCommand::Withdraw { amount } => ("withdraw", json!({ "amount": amount })),
        WalletCommand::Send { to, amount } => ("send", json!({ "to": to, "amount": amount })),
        WalletCommand::Settle { deals } => ("settle", json!({ "deals": deals })),
        WalletCommand::Show => {
            let wallet = client.call(Call::get("/admin/v1/wallet")).await?;
            return out.print(&wallet, || shown(&wallet));
        }
        WalletCommand::New(_) | WalletCommand::Import { .. } | WalletCommand::Export { .. } => return Ok(()),
    };
    let mut key = [0; 16];
    entropy.fill(&mut key);
    let key = uuid::Uuid::from_bytes(key).to_string();
    // The node asks its Filecoin node several times, each of which may take half a minute.
    let call = Call::post(format!("/admin/v1/wallet/{path}"), body).keyed(key).long();
    let sent = client.call(call).await?;
    out.print(&sent, || told(path, &sent))
}

fn text(value: &Value) -> String {
    value.as_str().map(printable).unwrap_or_else(|| value.to_string())
}

fn shown(wallet: &Value) -> String {
    let rows = [
        ("address", text(&wallet["address"])),
        ("wallet", with_final(&wallet["wallet"], &wallet["wallet_final"])),
        ("escrow", amount(&wallet["escrow"])),
        ("  locked by deals", amount(&wallet["locked"])),
        ("  free", with_final(&wallet["free"], &wallet["free_final"])),
        ("committed", amount(&wallet["committed"])),
        ("gas of a message", format!("at most {}", amount(&wallet["max_gas"]))),
        ("epoch", format!("{}, final up to {}", text(&wallet["head"]), text(&wallet["last_final"]))),
    ];
    let remarks = wallet["remarks"].as_array().into_iter().flatten();
    let remarks = remarks.map(|remark| format!("{:<18} {}\n", "note", text(remark)));
    rows.iter().map(|(name, value)| format!("{name:<18} {value}\n")).chain(remarks).collect()
}

/// An amount, and how much of it may be used, where that is not all of it: the rest came in lately.
fn with_final(there: &Value, is_final: &Value) -> String {
    let all = amount(there);
    if is_final.is_null() || there == is_final {
        return all;
    }
    format!("{all}, of it {} final: the rest counts once it is final too", amount(is_final))
}

fn told(what: &str, sent: &Value) -> String {
    let gas = amount(&sent["max_fee"]);
    let progress = text(&sent["progress"]);
    format!("{what}: {progress}, for at most {gas} of gas; it goes on by itself, `floe wallet show` tells\n")
}

fn amount(value: &Value) -> String {
    let parsed = value.as_str().and_then(|digits| digits.parse().ok());
    parsed.map_or_else(|| text(value), fil)
}

/// FIL for people, no digit left out.
pub(crate) fn fil(amount: AttoFil) -> String {
    const ONE: u128 = 1_000_000_000_000_000_000;
    let (whole, rest) = (amount.get() / ONE, amount.get() % ONE);
    if rest == 0 {
        return format!("{whole} FIL");
    }
    let digits = format!("{rest:018}");
    format!("{whole}.{} FIL", digits.trim_end_matches('0'))
}

/// An amount of the command line: attoFIL as digits, or FIL as in `0.5FIL`. No float is ever made of it.
pub(crate) fn amount_of(text: &str) -> Result<AttoFil, String> {
    let wanted = || "an amount is attoFIL in digits, or FIL as in 0.5FIL".to_owned();
    let Some(number) = text.strip_suffix("FIL").or_else(|| text.strip_suffix("fil")) else {
        return text.parse().map_err(|_| wanted());
    };
    let number = number.trim();
    let (whole, part) = number.split_once('.').unwrap_or((number, ""));
    let plain = |digits: &str| digits.bytes().all(|b| b.is_ascii_digit());
    if whole.is_empty() || part.len() > 18 || !plain(part) || number.ends_with('.') {
        return Err(wanted());
    }
    format!("{whole}{part:0<18}").parse().map_err(|_| wanted())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_are_read_and_shown_without_a_digit_lost() {
        for (text, atto) in [
            ("1", 1),
            ("1FIL", 1_000_000_000_000_000_000),
            ("0.5 FIL", 500_000_000_000_000_000),
            ("0.000000000000000001FIL", 1),
            ("12.34fil", 12_340_000_000_000_000_000),
        ] {
            assert_eq!(amount_of(text), Ok(AttoFil::new(atto)), "{text}");
            assert_eq!(amount_of(&fil(AttoFil::new(atto))), Ok(AttoFil::new(atto)), "{text}");
        }
        for bad in
            ["", "FIL", ".5FIL", "1.FIL", "1e18", "-1FIL", "0.0000000000000000001FIL", "1.5", "1.a FIL"]
        {
            assert!(amount_of(bad).is_err(), "{bad}");
        }
        assert_eq!(fil(AttoFil::new(1_500_000_000_000_000_000)), "1.5 FIL");
        assert_eq!(fil(AttoFil::ZERO), "0 FIL");
    }

    #[test]
    fn what_is_shown_names_every_sum() {
        let wallet = json!({"address": "f1abc", "wallet": "1000000000000000000", "escrow": "7", "locked": "3",
            "free": "4", "free_final": "1",
            "wallet_final": "1000000000000000000", "committed": "2", "max_gas": "1", "head": 9, "last_final": 4,
            "remarks": ["it is old"]});
        let shown = shown(&wallet);
        for part in [
            "f1abc",
            "1 FIL\n",
            "FIL, of it 0.000000000000000001 FIL final",
            "committed",
            "up to 4",
            "it is old",
        ] {
            assert!(shown.contains(part), "{shown}");
        }
    }
}
