//! `map`.

use anteroom_controller_core::decide::Party;
use anteroom_controller_core::history::Edge;
use anteroom_controller_core::map::{Grain, Line, Map, map as draw};
use anteroom_controller_core::surface::Surfaces;
use anteroom_proto::time::UnixMillis;

use super::learn::millis;
use crate::args::{MapArgs, MapBy, MapFormat, SortBy};
use crate::change::ChangeError;
use crate::error::{Error, Exit};
use crate::home::write_new;
use crate::output::Output;
use crate::output::table::count;
use crate::recorded::Recorded;
use crate::remote::Remote;
use crate::standing::model_as_it_is;

/// `anteroom map`.
pub(super) fn map(
    args: &MapArgs,
    remote: &mut Remote,
    output: &mut Output<'_>,
) -> Result<Exit, Error> {
    let model = model_as_it_is(remote, output)?;
    let only = match &args.name {
        None => None,
        Some(name) => Some(match (model.client_named(name), name.parse()) {
            (Some((id, _)), _) => Party::Member(id),
            (None, Ok(address)) => Party::Address(address),
            (None, Err(_)) => Party::Member(model.find_device(name).map_err(ChangeError::from)?.0),
        }),
    };
    let recorded = Recorded::of(remote, &model)?;
    recorded.warn_of_gaps(output)?;
    let since = UnixMillis(recorded.now.0.saturating_sub(millis(args.over)));
    let grain = match args.by {
        _ if args.each => Grain::Each,
        MapBy::Device => Grain::Each,
        MapBy::Class => Grain::Class,
        MapBy::Segment => Grain::Segment,
    };
    let surfaces = Surfaces::of(&recorded.resolved);
    let wanted = |edge: &Edge| {
        only.is_none_or(|party| edge.from == party || edge.to == party)
            && args.surface.fits_either([edge.from, edge.to].map(|party| surfaces.party(party)))
    };
    let mut map = draw(&recorded.resolved, &surfaces, &recorded.history, grain, since, &wanted);
    if args.surface.sort == Some(SortBy::Criticality) {
        map.most_critical_first();
    } else if args.surface.sort.is_some() {
        return Err(Error::Usage(
            "a map can be sorted by criticality alone: its nodes stand for many devices".into(),
        ));
    }
    let drawn = match args.format {
        MapFormat::Text => map.text(),
        MapFormat::Dot => map.dot(),
        MapFormat::Svg => map.svg(),
    };
    if let Some(path) = &args.out {
        write_new(path, &drawn).map_err(|error| Error::file(path, error))?;
    }
    output.data(&map, |map| match (&args.out, args.format) {
        (Some(path), _) => format!("Written to {}: {}", path.display(), told(map)),
        (None, MapFormat::Text) => format!("{drawn}{}", told(map)),
        (None, _) => drawn.trim_end().to_owned(),
    })?;
    Ok(Exit::Ok)
}

fn told(map: &Map) -> String {
    if map.lines.is_empty() {
        return "No traffic recorded that fits.".into();
    }
    let exposed = map.lines.iter().filter(|line| Line::exposes_patients(line)).count();
    let mut text = format!(
        "{}, {}",
        count(map.nodes.len(), "node", "nodes"),
        count(map.lines.len(), "line", "lines")
    );
    if exposed > 0 {
        text.push_str(&format!(", {exposed} of them with patient data in the clear"));
    }
    if map.unanswered > 0 {
        text.push_str(&format!("; {} that nobody answered left out", map.unanswered));
    }
    text + "."
}
