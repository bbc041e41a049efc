//! `whimbrel-powercut`: a real server on a file system of this program's own, whose power fails.

fn main() {
    std::process::exit(whimbrel_powercut::powercut());
}
