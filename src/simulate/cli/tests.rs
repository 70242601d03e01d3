use clap::Parser;

use super::*;

#[derive(Debug, Parser)]
struct Alone {
    #[command(flatten)]
    simulate: Simulate,
}

fn parsed(options: &str) -> Result<Simulate, clap::Error> {
    Alone::try_parse_from(format!("simulate {options}").split_whitespace()).map(|alone| alone.simulate)
}

fn setup(options: &str) -> anyhow::Result<Setup> {
    parsed(options)?.setup().map(|(setup, _)| setup)
}

#[test]
fn options_become_a_setup() {
    let setup =
        setup("--members 4 --skew 60,25,10,5 --at 120 scale=64 --at 5m ledger-down=20s --at 1 turn --seconds 400")
            .unwrap();
    assert_eq!((setup.members, setup.most, setup.turn_at), (4, 64, Some(1.0)));
    assert_eq!(setup.faults, [(120.0, Fault::Scale(64)), (300.0, Fault::LedgerDown(20.0))]);
    assert_eq!((setup.skew, setup.judged), (Skew::Parts(vec![60.0, 25.0, 10.0, 5.0]), (120.0, 400.0)));
}

#[test]
fn what_cannot_be_is_said() {
    for (options, says) in [
        ("--at 3 explode", "no event"),
        ("--at 3 freeze=2", "PLACE:TIME"),
        ("--at x turn", "no time"),
        ("--most 3", "--most is below the 20"),
        ("--seconds 100", "nothing is left to judge"),
        ("--load 0", "above 0"),
        ("--trace /none.csv", "cannot read /none.csv"),
        ("--skew 1,x", "Zipf exponent"),
        ("--table --members 3", "cannot be used with"),
        ("--members 0", "members"),
    ] {
        let error = format!("{:#}", setup(options).unwrap_err());
        assert!(error.contains(says), "{options}: {error}");
    }
}

#[test]
fn events_are_read() {
    let fault = |text| event(text).ok();
    assert_eq!(fault("budget=40%"), Some(Happens::Fault(Fault::Budget(40))));
    assert_eq!(fault("freeze=3:1m"), Some(Happens::Fault(Fault::Freeze(3, 60.0))));
    assert_eq!(fault("operator-away=10m"), Some(Happens::Fault(Fault::OperatorAway(600.0))));
    assert_eq!(fault("scale=x"), None);
}

#[test]
fn a_run_prints_a_table_or_json_and_draws() {
    let dir = std::env::temp_dir().join(format!("tokenbudget-simulate-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let (trace, plot) = (dir.join("trace.csv"), dir.join("out.svg"));
    let lines: String = (0..900).map(|i| format!("{},500\n", f64::from(i) / 10.0)).collect();
    std::fs::write(&trace, format!("seconds,tokens\n{lines}")).unwrap();
    let options =
        format!("--members 3 --budget 200000 --warm 10 --trace {} --plot {}", trace.display(), plot.display());
    let printed = |more: &str| {
        let mut out = Vec::new();
        assert!(parsed(&format!("{options} {more}")).unwrap().run(&mut out).unwrap());
        String::from_utf8(out).unwrap()
    };
    let text = printed("");
    assert!(text.contains("ideal central bucket") && text.contains("static split"), "{text}");
    let json: serde_json::Value = serde_json::from_str(&printed("--output=json")).unwrap();
    assert_eq!(json["contenders"][1]["who"], "ideal");
    assert!(json["contenders"][0]["useOfIdeal"].as_f64().unwrap() > 0.5);
    assert!(std::fs::read_to_string(&plot).unwrap().contains("a recorded trace"));
    std::fs::remove_dir_all(&dir).unwrap();
}
