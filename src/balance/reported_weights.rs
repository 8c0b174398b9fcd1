use crate::member::Member;

/// Multiplies the members' shares by the weights that their endpoints report, if two or more report
/// one.
///
/// An endpoint that reports nothing counts as the mean of the others (gRFC A58). A report of more
/// than ten times the median, or less than a hundredth of it, is cut to that bound: no single
/// report draws all requests. gRPC bounds by the mean instead, which one extreme report moves.
pub(super) fn apply_reported_weights<A, S>(members: &mut [Member<A, S>]) {
    let reports = members.iter().map(|member| member.endpoint.reported());
    let reports: Vec<Option<f64>> = reports.collect();
    let mut known: Vec<f64> = reports.iter().flatten().copied().collect();
    if known.len() < 2 {
        return;
    }
    let at = (known.len() - 1) / 2;
    let (_, &mut median, _) = known.select_nth_unstable_by(at, f64::total_cmp);
    let bounded = |report: f64| report.clamp(median / 100.0, median * 10.0);
    let mean = known.iter().copied().map(bounded).sum::<f64>() / known.len() as f64;
    let share = |(member, report): (&Member<A, S>, &Option<f64>)| {
        f64::from(member.share) * report.map_or(mean, bounded)
    };
    let shares: Vec<f64> = members.iter().zip(&reports).map(share).collect();
    let largest = shares.iter().copied().fold(0.0, f64::max);
    for (member, share) in members.iter_mut().zip(shares) {
        let part = share / largest * f64::from(LARGEST);
        member.share = (part.round() as u32).max(u32::from(member.weight > 0));
    }
}

/// Fine enough for shares of a millionth. Sums stay far below 64 bits.
const LARGEST: u32 = 1 << 20;
