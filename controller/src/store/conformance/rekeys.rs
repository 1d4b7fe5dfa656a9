//! Identity keys that are to be replaced.

use anteroom_proto::api::RekeyDoubt;
use anteroom_proto::rekey::{RekeyOffer, RekeyOrder};

use super::*;

pub(super) async fn a_later_order_voids_what_was_offered_upon_an_earlier_one(store: &dyn Store) {
    let order = |n: u8| Signed::<RekeyOrder>::from_bytes(vec![n; 30]);
    let offer = |n: u8| RekeyOffer {
        by_old: Signed::from_bytes(vec![n; 40]),
        by_new: Signed::from_bytes(vec![n; 41]),
        keys: vec![Signed::from_bytes(vec![n; 42])],
    };
    for n in [1, 2] {
        enrolled(store, n).await;
    }
    let audited = store.audit(0, 100).await.unwrap().len();
    store.offer_rekey(gateway(1), &order(1), &offer(1)).await.unwrap();
    assert!(store.rekeys().await.unwrap().is_empty(), "an offer that nobody asked for");
    assert_eq!(store.rekey(gateway(1)).await.unwrap(), None);
    store.want_rekey(gateway(1), &order(1), &audit("first")).await.unwrap();
    store.want_rekey(gateway(2), &order(2), &audit("another's")).await.unwrap();
    store.want_rekey(gateway(9), &order(9), &audit("a stranger's")).await.unwrap();
    store.offer_rekey(gateway(1), &order(1), &offer(1)).await.unwrap();
    store.offer_rekey(gateway(1), &order(1), &offer(3)).await.unwrap();
    // Upon an order that isn't the newest.
    store.offer_rekey(gateway(1), &order(7), &offer(7)).await.unwrap();
    store.doubt_rekey(gateway(2), &order(1), &audit("another order")).await.unwrap();
    let all = store.rekeys().await.unwrap();
    assert_eq!(all.len(), 2, "{all:?}");
    assert_eq!((&all[&gateway(1)].order, &all[&gateway(1)].offer), (&order(1), &Some(offer(3))));
    assert_eq!((&all[&gateway(2)].order, &all[&gateway(2)].offer), (&order(2), &None));

    store.want_rekey(gateway(1), &order(4), &audit("second")).await.unwrap();
    let all = store.rekeys().await.unwrap();
    assert_eq!((&all[&gateway(1)].order, &all[&gateway(1)].offer), (&order(4), &None));
    assert_eq!(store.rekey(gateway(1)).await.unwrap().as_ref(), Some(&all[&gateway(1)]));
    store.doubt_rekey(gateway(1), &order(4), &audit("doubted")).await.unwrap();
    let doubt = async || store.rekey(gateway(1)).await.unwrap().unwrap().doubt;
    assert_eq!(doubt().await, Some(RekeyDoubt::Rival));
    store.offer_rekey(gateway(1), &order(4), &offer(4)).await.unwrap();
    assert_eq!(doubt().await, Some(RekeyDoubt::Rival), "until the next order");
    store.want_rekey(gateway(1), &order(5), &audit("third")).await.unwrap();
    assert_eq!(doubt().await, None);
    store.set_restored(&audit("restored")).await.unwrap();
    assert_eq!(doubt().await, None, "nothing was offered");
    store.offer_rekey(gateway(1), &order(5), &offer(5)).await.unwrap();
    store.set_restored(&audit("restored")).await.unwrap();
    assert_eq!(doubt().await, Some(RekeyDoubt::Restored));
    store.offer_rekey(gateway(1), &order(5), &offer(5)).await.unwrap();
    assert_eq!(doubt().await, None, "offered again");
    store.end_rekey(gateway(1), &order(4)).await.unwrap();
    assert!(store.rekey(gateway(1)).await.unwrap().is_some(), "an earlier one's end");
    store.end_rekey(gateway(1), &order(5)).await.unwrap();
    store.end_rekey(gateway(1), &order(5)).await.unwrap();
    assert_eq!(store.rekeys().await.unwrap().into_keys().collect::<Vec<_>>(), [gateway(2)]);
    let actions = store.audit(0, 100).await.unwrap();
    let actions: Vec<_> = actions.iter().skip(audited).map(|entry| entry.action.as_str()).collect();
    let wanted = [
        "first",
        "another's",
        "a stranger's",
        "another order",
        "second",
        "doubted",
        "third",
        "restored",
        "restored",
    ];
    assert_eq!(actions, wanted);
    audit::check(store).await.unwrap();
}
