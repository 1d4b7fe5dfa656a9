use super::*;
#[test]
fn t() {
    println!("{}", format("p", "format=1\n").unwrap());
}
