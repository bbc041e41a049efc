//! `whimbrel-fulldisk`: a real server on a small file system that fills up.

fn main() {
    std::process::exit(whimbrel_powercut::fulldisk());
}
