//! Prompts, their lengths and their caches, over both interfaces.

use lmpatch::bench::results::Run;

use super::{NONE, column, exact, failed, keeps, openai, runs, stage};

#[test]
fn both_interfaces_ask_for_one_token_and_say_whose_clock_it_was() {
    let bare = openai().odd(|odd| odd.has_bare_comments = true);
    for (stage, api, source, limit) in [
        (stage(), "v1", "server", "max_output_tokens"),
        (openai(), "openai", "client", "max_tokens"),
        // Bare comments are counted as steps.
        (bare, "openai", "client", "max_tokens"),
    ] {
        let results = stage.json("--model qwen/tiny --runs 1 --prompt-tokens 10000", 0);
        assert_eq!(results["api"], api);
        assert_eq!(runs(&results, 0)[0]["source"], source);
        assert_eq!(column(&results, "observed_chunk"), [2048]);
        assert_eq!(column(&results, "observed_steps"), [5]);
        for body in &stage.state().chats {
            assert!(body[limit] == 1 && body["temperature"] == 0 && body["stream"] == true);
            assert!(api == "openai" || body["store"] == false);
        }
    }
    openai().run("").exits(1).says("name one with --model");
}

#[test]
fn the_first_token_is_the_first_that_has_a_text() {
    let mut run = Run::default();
    let model = r#"data: {"model":"gemma","choices":[]}"#;
    run.line(model, 0.5, 90).unwrap();
    let said = |content: &str| format!(r#"data: {{"choices":[{{"delta":{content}}}]}}"#);
    for (line, seconds) in [
        (said(r#"{"role":"assistant","content":""}"#), 1.0),
        (said(r#"{"content":null,"reasoning_content":"So"}"#), 2.0),
        (said(r#"{"content":"so"}"#), 3.0),
        (
            r#"data: {"choices":[],"usage":{"prompt_tokens":100}}"#.to_owned(),
            4.0,
        ),
    ] {
        run.line(&line, seconds, 90).unwrap();
    }
    let run = run.end().unwrap();
    assert_eq!((run.prefill_seconds, run.tokens_per_second), (2.0, 50.0));
    // It need not be repeated.
    assert_eq!(run.model.as_deref(), Some("gemma"));
}

#[test]
fn a_count_of_steps_that_no_chunk_makes_says_nothing() {
    let stage = openai().odd(|odd| (odd.has_bare_comments, odd.has_last_step) = (true, true));
    let results = stage.json("--model qwen/tiny --runs 1 --prompt-tokens 10000", 0);
    assert_eq!(column(&results, "failed"), [NONE]);
    assert_eq!(column(&results, "observed_chunk"), [NONE]);
    // What is not what was set is told where it is clear.
    let stage = openai().odd(|odd| (odd.has_bare_comments, odd.stuck_at) = (true, Some(512)));
    let results = stage.json("--model qwen/tiny --runs 1 --prompt-tokens 10000", 1);
    failed(&results, 0, "it did not take effect: the engine used 512;");
}

#[test]
fn the_tokens_of_a_template_are_counted_out_of_a_prompt() {
    let stage = exact(&[(4096, 8), (2048, 10), (512, 16)]).odd(|odd| odd.template = 400);
    let results = stage.json("--sizes 512,2048,4096 --runs 1", 0);
    assert_eq!(column(&results, "observed_chunk"), [512, 2048, 4096]);
    let tokens = runs(&results, 2)[0]["prompt_tokens"].as_u64().unwrap();
    assert!((8192..8256).contains(&tokens), "{tokens}");
    keeps(&results, 4096);
}

/// What is told while a prefill runs is a part of a prompt whose tokens nobody has counted yet.
#[test]
fn a_chunk_is_observed_in_counted_tokens() {
    let stage = exact(&[(4096, 8), (2048, 40)]);
    // The end of the longest prompt has three times as many tokens as the rest.
    stage.write("mixed.txt", &("a".repeat(32_300) + &"日".repeat(20_000)));
    let results = stage.json("--sizes 2048,4096 --runs 1 --prompt-file mixed.txt", 0);
    let tokens = runs(&results, 1)[0]["prompt_tokens"].as_u64().unwrap();
    assert!((8350..8500).contains(&tokens), "{tokens}");
    // The first was cut short, so that it is never counted.
    assert_eq!(runs(&results, 0).len(), 0);
    assert_eq!(column(&results, "observed_chunk"), [2048, 4096]);
    assert_eq!(column(&results, "observed_steps"), [NONE, 3.into()]);
}

#[test]
fn prompts_of_another_length_do_not_count() {
    // Three bytes a character from some point on, and four bytes a token.
    let stage = exact(&[]);
    stage.write("mixed.txt", &("a".repeat(20_000) + &"日".repeat(100_000)));
    let results = stage.json("--sizes 2048,4096 --runs 3 --prompt-file mixed.txt", 0);
    let mut ignored = Vec::new();
    for run in [0, 1].into_iter().flat_map(|row| runs(&results, row)) {
        let tokens = run["prompt_tokens"].as_u64().unwrap();
        match run["ignored"].as_str() {
            Some(why) => ignored.push(why),
            None => assert!(tokens.abs_diff(8192) < 410, "{run}"),
        }
    }
    let why = ignored[0];
    assert!(why.starts_with("its prompt has 14"), "{why}");
    assert!(why.ends_with(" tokens instead of 8192"), "{why}");
}

#[test]
fn a_text_whose_tokens_are_uneven_costs_no_size_after_a_cut() {
    let stage = exact(&[(4096, 8), (2048, 40), (1024, 40), (512, 40)]);
    stage.write("mixed.txt", &("a".repeat(20_000) + &"日".repeat(100_000)));
    let words = "--sizes 512,1024,2048,4096 --prompt-file mixed.txt";
    let results = stage.json(words, 0);
    keeps(&results, 4096);
    assert_eq!(column(&results, "failed"), [NONE; 4]);
}

#[test]
fn a_template_out_of_the_cache_is_no_hit() {
    let stage = openai().odd(|odd| (odd.template, odd.caches_template) = (50, true));
    let results = stage.json("--model qwen/tiny --runs 1", 0);
    assert_eq!(runs(&results, 0)[0]["cached_tokens"], 66);
    assert_eq!(runs(&results, 0)[0]["ignored"], NONE);
    assert_eq!(column(&results, "observed_chunk"), [2048]);
}

#[test]
fn what_came_out_of_the_cache_does_not_count() {
    let stage = exact(&[]).odd(|odd| odd.always_hits = true);
    let results = stage.json("", 1);
    for run in runs(&results, 0) {
        assert_eq!(run["ignored"], "its beginning came out of the prompt cache");
    }
    assert_eq!(results["error"], "no size could be measured");
    assert_eq!(column(&results, "median_tokens_per_second"), [NONE]);
    let ran = stage.run("--runs 1").exits(1);
    ran.says("a run does not count: its beginning came out of the prompt cache");
    let stage = openai().odd(|odd| odd.always_hits = true);
    let results = stage.json("--model qwen/tiny", 1);
    let why = "a part of it came out of the prompt cache";
    assert_eq!(runs(&results, 0)[2]["ignored"], why);
}

#[test]
fn tokens_that_are_not_counted_make_no_endless_prompts() {
    let stage = stage().odd(|odd| odd.counts = Some(5));
    let results = stage.json("--model qwen/tiny --runs 1", 1);
    let why = "its prompt has 5 tokens instead of 8192";
    assert_eq!(runs(&results, 0)[0]["ignored"], why);
    let fake = stage.state();
    let lengths = fake.prefills.iter().map(|one| one.prompt.len());
    let longest = lengths.max().unwrap();
    assert!(longest <= 16 * 8192, "{longest}");
}

#[test]
fn a_prompt_file_is_used_over_and_over() {
    let stage = stage();
    stage.write("prompt.txt", "Grüße, ");
    stage.run("--runs 1 --prompt-file prompt.txt").exits(0);
    let prompt = stage.state().prefills.last().unwrap().prompt.clone();
    let (_, text) = prompt.split_once(' ').unwrap();
    let count = text.chars().count();
    assert!(count > 8192, "{count}");
    assert!(text.chars().eq("Grüße, ".chars().cycle().take(count)));
    let ran = stage.run("--prompt-file /no/such").exits(1);
    ran.says("cannot read /no/such (");
}
