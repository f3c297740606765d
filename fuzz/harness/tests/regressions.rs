//! Inputs that found something once, and some that came far, replayed: `fuzz/regressions/TARGET/NAME`.

use std::fs;
use std::path::Path;

use fuzz_harness::Target;

#[test]
fn inputs_that_are_kept_find_nothing_any_more() {
    let home = Path::new(env!("CARGO_MANIFEST_DIR")).join("../regressions");
    for target in Target::ALL {
        let files = fs::read_dir(home.join(target.name())).expect("every target has a directory");
        let mut reached = 0;
        for file in files {
            let path = file.expect("it is listed").path();
            println!("{}", path.display());
            reached += u32::from(target.run(&fs::read(&path).expect("it is read")).opened);
        }
        assert!(reached > 0, "{}: no input opens its image any more", target.name());
    }
}

#[test]
fn an_input_that_says_nothing_leaves_the_image_sound() {
    for target in Target::ALL {
        let reached = target.run(&[]);
        assert_eq!(reached.broken, 0, "{}", target.name());
    }
}
