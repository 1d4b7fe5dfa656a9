//! A bundle's page for people: no scripts, nothing loaded, fit for paper.

use std::fmt::Write as _;

use anteroom_proto::text::steers;

use super::tables::path;
use super::{Content, Inventory, Path, Reach, names};
use crate::blast::BlastRadius;
use crate::classify::shown::short;

/// Most rows of one table; the CSV files have all.
const ROWS: usize = 1_500;
/// Most devices that a note names.
const NAMED: usize = 12;
/// Most members of a group that are named.
const MEMBERS: usize = 200;
/// Most nodes of a map that is drawn on the page: a larger one is legible only as a picture of its own.
const NODES: usize = 120;

const STYLE: &str = "
:root{--paper:#fff;--ink:#1b2733;--dim:#5b6b7a;--line:#d4dbe2;--head:#eef2f6;--seal:#1e8449;--clear:#8f5a08;--risk:#c0392b;--note:#fdf6e9}
@media screen and (prefers-color-scheme:dark){:root{--paper:#12181f;--ink:#e6edf3;--dim:#9fb0c0;--line:#33404d;--head:#1c2530;--seal:#5fd08f;--clear:#e0a33a;--risk:#ff8a80;--note:#2b2415;color-scheme:dark}}
*{box-sizing:border-box}
body{font:14px/1.45 system-ui,'Segoe UI',Roboto,'Helvetica Neue',Arial,sans-serif;background:var(--paper);color:var(--ink);margin:0 auto;max-width:1320px;padding:32px 24px}
h1{font-size:26px;margin:0 0 4px}h2{font-size:19px;margin:36px 0 8px;padding-top:8px;border-top:2px solid var(--ink)}h3{font-size:15px;margin:20px 0 6px}
p{margin:6px 0}.dim{color:var(--dim)}
dl{display:grid;grid-template-columns:max-content 1fr;gap:2px 16px;margin:12px 0}dt{color:var(--dim)}dd{margin:0;overflow-wrap:anywhere}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(150px,1fr));gap:12px;margin:16px 0}.tile{border:1px solid var(--line);border-radius:6px;padding:10px 14px}
.tile b{display:block;font-size:22px}.tile.bad{border-left:4px solid var(--risk)}.tile.bad b{color:var(--risk)}
.wide{overflow-x:auto}
table{border-collapse:collapse;width:100%;margin:8px 0 16px;font-size:12.5px}
th,td{text-align:left;vertical-align:top;padding:4px 8px;border-bottom:1px solid var(--line);overflow-wrap:break-word}
th{background:var(--head);font-weight:600}thead{display:table-header-group}tr{break-inside:avoid}
.n{font-variant-numeric:tabular-nums}.t{white-space:nowrap;font-variant-numeric:tabular-nums}
.tunnel,.clear,.risk{font-weight:600}.tunnel{color:var(--seal)}.clear{color:var(--clear)}.risk{color:var(--risk)}td>.tunnel,td>.clear,td>.risk{white-space:nowrap}
.tunnel::before{content:'\\25CF\\A0'}.clear::before{content:'\\25A1\\A0'}.risk::before{content:'\\25A0\\A0'}
.note{border-left:4px solid var(--clear);background:var(--note);padding:8px 12px;margin:10px 0}
nav a{margin-right:16px;color:var(--ink)}
.map{overflow-x:auto;border:1px solid var(--line);border-radius:6px}.map svg{max-width:100%;height:auto;display:block}
@media print{body{padding:0;max-width:none;font-size:10.5px}table{font-size:8.5px}th,td{padding:2px 5px}.wide{overflow:visible}h2{break-before:page}h2.first{break-before:auto}nav{display:none}.map{border:0;break-inside:avoid}.map svg{max-height:180mm}@page{size:A4 landscape;margin:12mm}}
";

/// Text as HTML has it.
fn text(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            c if c.is_control() => escaped.push(' '),
            // What steers writing direction could make a name look like another one.
            c if steers(c) => escaped.push(char::REPLACEMENT_CHARACTER),
            c => escaped.push(c),
        }
    }
    escaped
}

/// A table of cells that are HTML already.
fn table(
    page: &mut String,
    headers: &[&str],
    rows: impl ExactSizeIterator<Item = Vec<String>>,
    all: &str,
) {
    let total = rows.len();
    page.push_str("<div class=\"wide\"><table><thead><tr>");
    headers.iter().for_each(|header| page.push_str(&format!("<th>{}</th>", text(header))));
    page.push_str("</tr></thead><tbody>\n");
    for row in rows.take(ROWS) {
        page.push_str("<tr>");
        for cell in row {
            let _ = write!(page, "<td>{cell}</td>");
        }
        page.push_str("</tr>\n");
    }
    page.push_str("</tbody></table></div>\n");
    if total > ROWS {
        let _ = writeln!(page, "<p class=\"note\">{} more rows are in {all}.</p>", total - ROWS);
    }
}

/// A moment (RFC 3339), shorter.
fn when(moment: &str) -> String {
    let short = moment.get(..16).filter(|_| moment.len() == 20 && moment.ends_with('Z'));
    let Some(short) = short else { return text(moment) };
    format!("<span class=\"t\">{}</span>", text(&short.replace('T', " ")))
}

/// How far a device could reach.
fn radius(found: Option<BlastRadius>) -> String {
    let Some(found) = found else { return "?".to_owned() };
    let lives = match found.life_support {
        0 => String::new(),
        lives => format!("<br><span class=\"risk\">{lives} life support</span>"),
    };
    format!("<span class=\"n\">{}</span>{lives}", found.reached)
}

fn dash(value: &str) -> String {
    if value.is_empty() { "<span class=\"dim\">–</span>".to_owned() } else { text(value) }
}

pub(super) fn page(content: &Content) -> String {
    let stamp = &content.stamp;
    let mut page = format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n\
         <meta name=\"viewport\" content=\"width=device-width\">\n<title>Anteroom: who can reach what, {}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n\
         <h1>Inventory, network map, and who can reach what</h1>\n",
        text(&stamp.made_at)
    );
    let history = stamp.history.as_ref();
    let history =
        history.map_or_else(|| "none".to_owned(), |(first, last)| format!("{first} to {last}"));
    let audit = stamp.audit.as_ref();
    let audit =
        audit.map_or_else(|| "none".to_owned(), |(number, hash)| format!("entry {number}, {hash}"));
    page.push_str("<dl>");
    for (name, value) in [
        ("Made", format!("{} by {}", stamp.made_at, stamp.made_by)),
        ("Organisation", stamp.organisation.clone()),
        (
            "Policy and modes",
            format!(
                "as signed in revision {}; devices that aren't in the mode that was ordered in the one that they are in",
                stamp.revision
            ),
        ),
        ("Recorded traffic", history),
        ("Newest audit entry", audit),
    ] {
        let _ = write!(page, "<dt>{name}</dt><dd>{}</dd>", text(&value));
    }
    page.push_str("</dl>\n<p class=\"dim\">This page is part of a signed bundle. It proves nothing by itself: <code>anteroom export verify</code> checks the bundle.</p>\n");
    if stamp.turned_away > 0 {
        let _ = writeln!(
            page,
            "<p class=\"note\">{} edges of traffic found no room where they were recorded, or made some for others after weeks of silence, and are in no map here.</p>",
            stamp.turned_away
        );
    }
    page.push_str("<nav><a href=\"#reach\">Who can reach what</a><a href=\"#map\">Network map</a><a href=\"#inventory\">Inventory</a><a href=\"#review\">Review</a>");
    if content.difference.is_some() {
        page.push_str("<a href=\"#difference\">Differences</a>");
    }
    page.push_str("</nav>\n");
    tiles(&mut page, content);
    differences(&mut page, content);
    reach(&mut page, &content.reach);
    map(&mut page, content);
    inventory(&mut page, &content.inventory);
    review(&mut page, content);
    page.push_str("</body>\n</html>\n");
    page
}

fn tiles(page: &mut String, content: &Content) {
    let Content { inventory, map, reach, .. } = content;
    let exposed = map.lines.iter().filter(|line| line.exposes_patients()).count();
    let in_the_clear = reach
        .rules
        .iter()
        .filter(|rule| matches!(rule.path, Path::Clear | Path::Both) && !rule.expired)
        .count();
    page.push_str("<div class=\"tiles\">");
    for (number, what, bad) in [
        (inventory.devices.len(), "confirmed devices", false),
        (reach.enforced, "of them enforced", false),
        (reach.unenforced.len(), "not enforced yet", true),
        (inventory.unconfirmed.len(), "seen, not confirmed", true),
        (reach.rules.len(), "rules", false),
        (in_the_clear, "rules with pairs in the clear", true),
        (exposed, "lines with patient data in the clear", true),
    ] {
        let class = if bad && number > 0 { "tile bad" } else { "tile" };
        let _ = write!(page, "<div class=\"{class}\"><b>{number}</b>{what}</div>");
    }
    page.push_str("</div>\n");
}

fn differences(page: &mut String, content: &Content) {
    let Some(difference) = &content.difference else { return };
    let _ = writeln!(
        page,
        "<h2 id=\"difference\" class=\"first\">What differs from the bundle of {} (revision {})</h2>",
        text(&difference.since),
        difference.revision
    );
    if difference.changes.is_empty() {
        page.push_str("<p>Nothing.</p>\n");
        return;
    }
    let rows = difference.changes.iter().map(|change| {
        let maybe = |text: &Option<String>| dash(text.as_deref().unwrap_or_default());
        let what = match (&change.before, &change.after) {
            (None, Some(_)) => "new",
            (Some(_), None) => "gone",
            _ => "changed",
        };
        let field = if change.field.is_empty() { what } else { &change.field };
        vec![
            text(&change.kind),
            text(&change.name),
            text(field),
            maybe(&change.before),
            maybe(&change.after),
        ]
    });
    table(page, &["Kind", "Name", "What", "Before", "After"], rows, names::DIFFERENCE_CSV);
    if difference.left_out > 0 {
        let _ = writeln!(
            page,
            "<p class=\"note\">{} more lines were left out.</p>",
            difference.left_out
        );
    }
}

fn reach(page: &mut String, reach: &Reach) {
    page.push_str("<h2 id=\"reach\">Who can reach what</h2>\n<p>Nothing is allowed but what a rule names; replies are included, connections the other way aren't.</p>\n");
    if !reach.unenforced.is_empty() {
        let shown: Vec<String> =
            reach.unenforced.iter().take(NAMED).map(|name| text(name)).collect();
        let more = reach.unenforced.len().saturating_sub(NAMED);
        let more = if more > 0 {
            format!(" and {more} more: the inventory has each one's mode")
        } else {
            String::new()
        };
        let _ = writeln!(
            page,
            "<p class=\"note\">Rules hold back what is in enforce. {} in observe or protect: what they send beside the rules still passes in the clear. {}{more}</p>",
            if reach.unenforced.len() == 1 {
                "1 device is".to_owned()
            } else {
                format!("{} devices are", reach.unenforced.len())
            },
            shown.join(", ")
        );
    }
    let rows = reach.rules.iter().map(|rule| {
        let class = match rule.path {
            Path::Tunnel => "tunnel",
            Path::Nobody => "dim",
            Path::Clear | Path::Both => "clear",
        };
        let mut marks = Vec::new();
        if rule.essential {
            marks.push("essential".to_owned());
        }
        if let Some(at) = &rule.expires {
            marks.push(format!("{} {}", if rule.expired { "ended" } else { "ends" }, text(at)));
        }
        if let Some(reason) = &rule.reason {
            marks.push(text(reason));
        }
        vec![
            text(&rule.rule),
            text(&rule.from),
            text(&rule.to),
            format!(
                "{}<br><span class=\"dim\">{}</span>",
                text(&rule.services.join(", ")),
                text(&rule.ports.join(", "))
            ),
            format!("<span class=\"{class}\">{}</span>", path(rule.path)),
            format!("{} / {}", rule.tunnelled_pairs, rule.clear_pairs),
            rule.last_used
                .as_deref()
                .map_or_else(|| "<span class=\"risk\">never</span>".to_owned(), when),
            dash_html(&marks.join("; ")),
        ]
    });
    table(
        page,
        &[
            "Rule",
            "From",
            "To",
            "Services",
            "Path",
            "Pairs tunnelled / clear",
            "Last used",
            "Remarks",
        ],
        rows,
        names::REACH_CSV,
    );
    page.push_str("<h3>Who is meant</h3>\n<p>Externals are addresses, not identities: whoever has the address is let through.</p>\n");
    let rows = reach.groups.iter().map(|group| {
        let shown: Vec<String> =
            group.members.iter().take(MEMBERS).map(|name| text(name)).collect();
        let more = group.members.len().saturating_sub(MEMBERS);
        let more = if more > 0 {
            format!(" and {more} more ({})", names::REACH_CSV)
        } else {
            String::new()
        };
        let externals: Vec<String> = group
            .externals
            .iter()
            .map(|(name, nets)| {
                format!("<span class=\"clear\">{}</span> ({})", text(name), text(&nets.join(", ")))
            })
            .collect();
        vec![
            text(&group.name),
            text(&group.kind),
            group.members.len().to_string(),
            dash_html(&format!("{}{more}", shown.join(", "))),
            dash_html(&externals.join(", ")),
        ]
    });
    table(
        page,
        &["Name", "Kind", "Count", "Members", "Externals (addresses)"],
        rows,
        names::REACH_CSV,
    );
    if !reach.infrastructure.is_empty() {
        page.push_str("<h3>Infrastructure</h3>\n<p>Each device of the site may use these.</p>\n");
        let rows: Vec<Vec<String>> = reach
            .infrastructure
            .iter()
            .flat_map(|(site, lists)| {
                lists
                    .iter()
                    .map(move |(kind, list)| vec![text(site), text(kind), text(&list.join(", "))])
            })
            .collect();
        table(page, &["Site", "For", "Servers"], rows.into_iter(), names::REACH);
    }
}

fn dash_html(html: &str) -> String {
    if html.is_empty() { "<span class=\"dim\">–</span>".to_owned() } else { html.to_owned() }
}

fn map(page: &mut String, content: &Content) {
    let map = &content.map;
    page.push_str("<h2 id=\"map\">Network map: who talks to whom</h2>\n");
    let _ = writeln!(
        page,
        "<p>By classes of devices, as gateways recorded it. {} that nobody answered left out.</p>",
        map.unanswered
    );
    if map.lines.is_empty() {
        page.push_str("<p>Nothing was recorded.</p>\n");
        return;
    }
    if map.nodes.len() <= NODES {
        let _ = writeln!(page, "<div class=\"map\">{}</div>", map.svg());
    } else {
        let _ = writeln!(
            page,
            "<p class=\"note\">{} nodes are too many to be drawn here: {} has them.</p>",
            map.nodes.len(),
            names::MAP_SVG
        );
    }
    let name = |place: usize| {
        let node = map.nodes.get(place);
        let called = node.map(|node| text(&node.name)).unwrap_or_default();
        if node.is_some_and(|node| node.outside) {
            format!("{called} <span class=\"dim\">(address)</span>")
        } else {
            called
        }
    };
    let rows = map.lines.iter().map(|line| {
        let ways = line.ways();
        let class = if line.exposes_patients() {
            "risk"
        } else if line.clear > 0 {
            "clear"
        } else {
            "tunnel"
        };
        vec![
            name(line.from),
            name(line.to),
            text(&line.service),
            format!("<span class=\"{class}\">{}</span>", text(&ways)),
            if line.patient_data { "yes".into() } else { dash("") },
            line.flows().to_string(),
            when(&super::moment(line.last)),
        ]
    });
    table(
        page,
        &["From", "To", "Service", "Path", "Patient data", "Flows", "Last seen"],
        rows,
        names::MAP_CSV,
    );
}

fn inventory(page: &mut String, inventory: &Inventory) {
    page.push_str("<h2 id=\"inventory\">Inventory</h2>\n");
    page.push_str("<p>Class, make and what else is told of a device is what operators confirmed; what it is <b>taken for</b> is read from its traffic, and inventory.csv says why.</p>\n");
    let _ = writeln!(
        page,
        "<p>Times are UTC. How far a device <b>reaches</b> if it falls is counted in pairs of a member and a service: what rules open, and each member that nothing holds it \
         back from with all of the {} services that rules name.</p>",
        inventory.services
    );
    let rows = inventory.devices.iter().map(|device| {
        let make = [device.said("vendor"), device.said("model")].join(" ");
        let class = match device.mode.as_str() {
            "enforce" => "tunnel",
            _ => "clear",
        };
        let quarantined =
            if device.quarantined { " <span class=\"risk\">quarantined</span>" } else { "" };
        let held = if device.holds.is_empty() { &device.addresses } else { &device.holds };
        vec![
            text(&device.name),
            dash(device.said("class")),
            dash(make.trim()),
            text(&short(&device.claims)),
            dash(device.said("owner")),
            dash(device.said("location")),
            dash(device.said("criticality")),
            dash(device.said("sensitivity")),
            format!("<span class=\"{class}\">{}</span>{quarantined}", text(&device.mode)),
            format!("{} {}", text(&device.gateway), text(&device.port)),
            text(&device.mac),
            dash(&held.join(", ")),
            device
                .last_seen
                .as_deref()
                .map_or_else(|| "<span class=\"risk\">never</span>".to_owned(), when),
            radius(device.reaches),
            radius(device.reaches_enforced),
        ]
    });
    table(
        page,
        &[
            "Device",
            "Class",
            "Make",
            "Taken for",
            "Owner",
            "Location",
            "Criticality",
            "Data",
            "Mode",
            "Behind",
            "MAC",
            "Addresses",
            "Last seen",
            "Reaches today",
            "Reaches, all enforced",
        ],
        rows,
        names::INVENTORY_CSV,
    );
    if !inventory.unconfirmed.is_empty() {
        page.push_str("<h3>Seen, and confirmed by nobody</h3>\n");
        let rows = inventory.unconfirmed.iter().map(|one| {
            vec![
                text(&one.mac),
                format!("{} {}", text(&one.gateway), text(&one.port)),
                dash(&one.addresses.join(", ")),
                text(&short(&one.claims)),
                text(&one.last_seen),
            ]
        });
        table(
            page,
            &["MAC", "Behind", "Addresses", "Taken for", "Last seen"],
            rows,
            names::INVENTORY_CSV,
        );
    }
    if !inventory.clients.is_empty() {
        page.push_str("<h3>Clients</h3>\n");
        let rows = inventory.clients.iter().map(|one| {
            vec![
                text(&one.name),
                text(&one.site),
                text(&one.address),
                dash(&one.segments.join(", ")),
            ]
        });
        table(page, &["Client", "Site", "Address", "Segments"], rows, names::INVENTORY_CSV);
    }
    page.push_str("<h3>Gateways</h3>\n");
    let rows = inventory.gateways.iter().map(|one| {
        vec![text(&one.name), text(&one.site), one.devices.to_string(), text(&one.identity)]
    });
    table(page, &["Gateway", "Site", "Devices", "Identity key"], rows, names::INVENTORY);
}

fn review(page: &mut String, content: &Content) {
    let review = &content.review;
    page.push_str("<h2 id=\"review\">Review: what is stale</h2>\n");
    let when = |at: &Option<anteroom_proto::time::UnixMillis>| {
        at.map_or_else(|| "never".to_owned(), super::moment)
    };
    let rules = review
        .rules
        .iter()
        .map(|(name, at)| vec!["rule that no flow used".to_owned(), text(name.as_str()), when(at)]);
    let externals = review.externals.iter().map(|(name, at)| {
        vec!["external past its day of review".to_owned(), text(name.as_str()), super::moment(*at)]
    });
    let devices = review.devices.iter().map(|(name, at)| {
        vec!["device that wasn't seen".to_owned(), text(name.as_str()), when(at)]
    });
    let rows: Vec<Vec<String>> = rules.chain(externals).chain(devices).collect();
    if rows.is_empty() {
        page.push_str("<p>Nothing is.</p>\n");
    } else {
        table(
            page,
            &["What", "Name", "Last used, seen, or to be reviewed"],
            rows.into_iter(),
            names::REVIEW,
        );
    }
}
