//! Answers with what the graph answers: the shortest model there is.
use windrose_guest::prelude::*;

fn infer(request: Request) -> Result<Response> {
    Graph::by_name("model")?.run(request)
}

windrose_guest::export!(fn infer);
