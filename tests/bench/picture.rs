//! How many times faster, as a picture: a bar for each row that has a rival, on a scale of powers of ten.

use crate::beside::SECTION;
use crate::report::Row;

const LABEL: f64 = 230.0;
const DECADE: f64 = 150.0;
const LINE: f64 = 17.0;

pub fn svg(rows: &[Row]) -> String {
    let bars: Vec<(&str, f64)> =
        rows.iter().filter(|r| r.is_of(SECTION)).filter_map(|r| Some((r.name(), r.get("times")?))).collect();
    let least = bars.iter().map(|(_, t)| *t).fold(0.1, f64::min);
    let most = bars.iter().map(|(_, t)| *t).fold(10.0, f64::max);
    let (from, to) = (least.log10().floor(), most.log10().ceil());
    let at = |times: f64| LABEL + (times.log10() - from) * DECADE;
    let (width, height) = (at(10f64.powf(to)) + 60.0, LINE * (bars.len() as f64 + 2.5));
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width:.0} {height:.0}\" width=\"{width:.0}\" font-family=\"sans-serif\" font-size=\"11\">\n\
         <title>How many times faster than the stock drivers each call is</title>\n\
         <style>text{{fill:#333}}.g{{stroke:#999;stroke-width:.5}}.f{{fill:#2a78b5}}.s{{fill:#c8641e}}\
         @media(prefers-color-scheme:dark){{text{{fill:#ccc}}.g{{stroke:#777}}.f{{fill:#5aa9e6}}.s{{fill:#f09a57}}}}</style>\n"
    );
    let bottom = LINE * (bars.len() as f64 + 1.2);
    for power in from as i32..=to as i32 {
        let times = 10f64.powi(power);
        let x = at(times);
        out += &format!("<line class=\"g\" x1=\"{x:.0}\" x2=\"{x:.0}\" y1=\"0\" y2=\"{bottom:.0}\"/>");
        out += &format!(
            "<text x=\"{x:.0}\" y=\"{:.0}\" text-anchor=\"middle\">{times} times</text>\n",
            bottom + LINE
        );
    }
    for (n, (name, times)) in bars.iter().enumerate() {
        let y = LINE * (n as f64 + 0.5);
        let (a, b) = (at(times.min(1.0)), at(times.max(1.0)));
        let class = if *times < 1.0 { "s" } else { "f" };
        out +=
            &format!("<text x=\"{:.0}\" y=\"{:.0}\" text-anchor=\"end\">{name}</text>", LABEL - 6.0, y + 9.0);
        out += &format!(
            "<rect class=\"{class}\" x=\"{a:.1}\" y=\"{y:.1}\" width=\"{:.1}\" height=\"11\"/>",
            b - a
        );
        out += &format!("<text x=\"{:.0}\" y=\"{:.0}\">{}</text>\n", b + 4.0, y + 9.0, short(*times));
    }
    out + "</svg>\n"
}

fn short(times: f64) -> String {
    if times < 10.0 { format!("{times:.1}") } else { format!("{times:.0}") }
}
