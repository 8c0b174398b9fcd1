//! Sets the cfg by which the crate takes loom's atomics.

fn main() {
    println!("cargo::rustc-check-cfg=cfg(tower_lb_loom)");
    println!("cargo::rustc-cfg=tower_lb_loom");
}
