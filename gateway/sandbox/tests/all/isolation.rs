//! Values never mix between calls that run at the same time.

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use windrose_sandbox::PASSTHROUGH;

use crate::support::{SANDBOX, context, floats, identity, request};

#[test]
fn every_caller_gets_its_own_values() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let program = identity(SANDBOX.module(PASSTHROUGH).unwrap(), |_| ());
    let signature = runtime.block_on(program.describe(&context())).unwrap();
    // Rows of many lengths; some callers give up in the middle.
    let callers = prop::collection::vec((1usize..300, prop::bool::weighted(0.2)), 1..48);
    let mut runner = TestRunner::new(Config { cases: 40, ..Config::default() });
    let result = runner.run(&callers, |callers| {
        let calls = callers.into_iter().enumerate().map(|(caller, (length, gives_up))| {
            let (program, signature) = (program.clone(), signature.clone());
            let task = runtime.spawn(async move {
                let row: Vec<f32> = (0..length).map(|i| (caller * 1000 + i) as f32).collect();
                let answer = program.infer(&signature, request(&row), &context()).await.unwrap();
                assert_eq!(floats(&answer), row, "the values of another caller");
            });
            if gives_up {
                task.abort();
            }
            task
        });
        for call in calls.collect::<Vec<_>>() {
            match runtime.block_on(call) {
                Err(error) if error.is_panic() => return Err(TestCaseError::fail(error.to_string())),
                _ => {}
            }
        }
        Ok(())
    });
    result.unwrap();
}
