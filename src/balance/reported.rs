use crate::policy::Member;

/// Sets the members' shares to their weights times what they report of themselves, where two or more do.
///
/// Who reports nothing counts as the mean of the others (gRFC A58).
pub(super) fn follow_reports<A, S>(members: &mut [Member<A, S>]) {
    let reports = members.iter().map(|member| member.endpoint.reported());
    let reports: Vec<Option<f64>> = reports.collect();
    let known = reports.iter().flatten().count();
    if known < 2 {
        return;
    }
    let mean = reports.iter().flatten().sum::<f64>() / known as f64;
    let share = |(member, report): (&Member<A, S>, &Option<f64>)| {
        f64::from(member.share) * report.unwrap_or(mean)
    };
    let shares: Vec<f64> = members.iter().zip(&reports).map(share).collect();
    let largest = shares.iter().copied().fold(0.0, f64::max);
    for (member, share) in members.iter_mut().zip(shares) {
        let part = share / largest * f64::from(LARGEST);
        member.share = (part.round() as u32).max(u32::from(member.weight > 0));
    }
}

/// Shares of a millionth are told apart, and sums stay far from the end of 64 bits.
const LARGEST: u32 = 1 << 20;
