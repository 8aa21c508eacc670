"""The grammar of composed word problems: tables only, read by `events`.

A [kind] opens a block with one kind of amount. Its lines are "part: phrase | phrase ..."; a part
is what a sentence does to the amount. # is the first number of a sentence and ## its second one.
{S} is the person, named or as "he"; {t} what is counted, {w} where it is, {u} a unit, {l} a liquid
or the like, {h} what holds it; the other slots are those of `problem_tables`. "cast:" names the
words of a slot, "late plain:", "late product:" and "late sum:" tell the start after the first
event. Starts: plain (#), product (#*##), sum (#+##). Events: gain, loss, gains (#*## more), losses,
half, double, repeat (times #). Ends with one more step: share and group (divided by #), value and
ratio (times #), over (take # away), under (away from #), plus; now asks for the amount, left does
after a loss.
Where two are compared: mine asks for the second one, both for the sum, times (times #), less.
"""

EVENTS = """
[things]
plain: {S} has # {t}. | {S} owns # {t}. | {S} keeps # {t} in a drawer. | {S} has \
<packed/brought/collected/counted> # {t}. | {S} starts the day with # {t}. | In the bag of {n} \
there are # {t}.
late plain: Before that {he} had #. | At first {he} had # {t}. | {He} had # {t} <before/to begin \
with>.
late product: Before that {he} had # {ks} with ## {t} in each. | At first {he} had # {ks} of ## \
{t} each. | {He} had # {ks} before, and each held ## {t}.
late sum: Before that {he} had # <red/small/old> {t} and ## <blue/big/new> ones. | At first {he} \
had # {t} at home and ## {t} at school.
product: {S} has # {ks} with ## {t} in each. | {S} has # {ks} of ## {t} each. | Each {k} of {n} \
holds ## {t}, and {he} has # {ks}. | {S} packs ## {t} into each of # {ks}. | {S} makes ## {t} a \
day for # days. | {S} fills # shelves with ## {t} each. | {S} gets ## {t} from each of # friends.
sum: {S} has # <red/small/old> {t} and ## <blue/big/new> ones. | {S} has # {t} at home and ## at \
school. | {S} gets # {t} from {m} and ## from a neighbour. | {S} made # {t} on Monday and ## on \
Friday. | {S} holds # {t} in one hand and has ## in a {k}.
gain: {S} <finds/buys/gets/wins/makes/collects> # more {t}. | {m} <gives/brings/sends/hands> {him} \
# <more/new ones/others>. | Then {S} <picks up/borrows/is given> # more. | A neighbour adds # \
more. | {S} <takes/gets> # other {t} from a shelf. | Later # new {t} come in the post.
loss: {S} <loses/sells/breaks/gives away/throws away/uses/uses up> # of them. | {S} \
<loses/sells/breaks/lends out> # {t}. | {m} <takes/borrows/breaks/wants> # of the {t} and keeps \
them. | # of the {t} are <stolen/broken/lost/bad and thrown away>. | {S} <gives/sends/sells/hands> \
# {t} to {m}.
gains: {S} <buys/gets/finds> # {ks} with ## {t} in each. | # friends bring {him} ## {t} each. | \
For # days {S} makes ## more {t} a day. | {S} buys # packs of ## {t}.
losses: {S} gives ## {t} to each of # <friends/children/guests>. | {S} sells # {ks} of ## {t} \
each. | # children take ## {t} each. | On each of # days {S} <loses/uses> ## of them.
half: {S} <gives/sends/sells> half of them to {m}. | Half of the {t} are <lost/stolen/broken>. | \
{S} sells half of {his} {t}. | {m} takes half of them.
double: {S} <finds/buys/makes> as many again. | {m} gives {him} as many as {he} has. | {S} works \
hard and doubles the number of {his} {t}.
now: How many {t} does {n} have <now/then/in the end/after that>? | How many {t} are there in the \
end? | Work out how many {t} {n} has <now/in the end>. | How many {t} is that?
left: How many {t} does {n} have left? | How many {t} are left? | How many of the {t} remain? | \
How many {t} does {n} still have?
share: {S} shares <them/all of them> equally among # <friends/children/neighbours>. How many {t} \
does each of them get? | {S} wants to share {t} equally among # friends. How many {t} does each \
friend get? | {S} wants to fill # {ks} with {t}, the same number in each. How many {t} go into \
one? | {S} puts all of them into # {ks}, the same number in each. How many {t} are in each {k}? | \
# <children/friends> then divide the {t} equally. How many does each get?
group: {S} packs them into {ks} of #. How many {ks} does {n} <need/fill>? | {S} puts # {t} into \
each {k}. How many {ks} are needed? | A {k} holds # {t}. How many {ks} does {n} need? | {S} lays \
them in rows of #. How many rows does {n} make?
value: {S} sells them all for # coins each. How many coins does {n} get? | Each of the {t} weighs \
# grams. How many grams do they weigh? | {S} gets # points for each of them. How many points is \
that? | It takes # minutes to clean one of them. How many minutes does {n} need?
ratio: {m} has # times as many {t}. How many {t} does {m} have?
over: {m} has # {t}. How many more {t} does {n} have than {m}? | # of these {t} are old. How many \
are not old? | {S} needs only #. How many {t} are too many?
under: {S} wants to have # {t}. How many {t} does {n} still need? | {m} has # {t}. How many fewer \
{t} does {n} have than {m}? | {S} has room for # {t}. How many more {t} can {n} take?
plus: {m} has # more than that. How many {t} does {m} have? | {m} has # {t}. How many {t} do they \
have together?

[goods]
cast: t=chairs,plates,books,rolls,loaves,plums,eggs,stones,baskets,tickets,stamps,cups,tables,\
buckets,trays,bottles,boards,benches,coats,carpets,pictures,pumpkins,bricks,tools,pots,barrels
cast: w=in a shop,in a kitchen,on a table,in a cellar,in a library,on a cart,in a school,at a \
market,in a barn,in a mill,on a ship,in a house,in a theatre,in a tent,on a platform
plain: There are # {t} {w}. | <Someone counts/One can see> # {t} {w}. | In the morning there are # \
{t} {w}. | # {t} <stand/lie> {w}.
late plain: Before that there were # {t} there. | There were # of them at first.
late product: Before that there were # {ks} with ## {t} in each. | At first there were # piles of \
## {t} there.
late sum: Before that there were # <large/red/good> {t} and ## <little/green/cheap> ones.
product: There are # rows of ## {t} {w}. | There are # shelves with ## {t} on each {w}. | # men \
each put ## {t} {w}. | # {ks} of ## {t} each stand {w}. | {w}, there are # piles with ## {t} in \
each. | ## {t} lie on each of # trays {w}. | # women bring ## {t} each.
sum: There are # <large/red/old/good> {t} and ## <little/green/new/cheap> ones {w}. | # {t} stand \
{w}, and ## more stand outside. | Someone puts # {t} {w}, and someone else puts ## {t} there. | # \
{t} come on Monday and ## on Tuesday.
gain: # more {t} are <brought/added/delivered>. | A man <brings/adds/delivers> # more. | Then # \
new {t} arrive. | {m} <puts/lays> # more {t} there. | The workers make # new ones.
loss: # of the {t} are <sold/taken away/broken/used/carried off>. | People <buy/borrow/take/use> # \
of them. | # {t} <break/disappear/are lost>. | {m} <takes/carries> # {t} away. | A boy breaks # of \
the {t}.
gains: # <boys/girls/men/women> bring ## more {t} each. | # carts come with ## {t} on each. | For \
# hours ## new {t} come every hour. | {m} brings # {ks}, each with ## {t}.
losses: # <boys/girls/men/women> take ## {t} each. | # carts leave with ## {t} on each. | Each day \
## {t} are sold, for # days. | # {ks} are filled with ## {t} each and sent away.
half: Half of the {t} are <sold/taken away/broken>. | {m} <buys/takes> half of them. | Half of \
them are old and burnt.
double: Then the number of {t} doubles. | As many {t} again are brought.
now: How many {t} are there <now/then/in the end/in all/after that>? | What is the number of {t} \
now? | How many {t} is that?
left: How many {t} are left? | How many {t} are still there? | How many {t} remain?
share: # <people/families/shops> get an equal part of them. How many {t} does each get? | All of \
them are put into # equal <rows/piles>. How many {t} are in each? | They are carried by # men, and \
all carry the same. How many {t} does one man carry?
group: The {t} are packed into {ks} of #. How many {ks} are <needed/filled>? | One cart takes # \
{t}. How many carts are needed for them? | They are put in piles of #. How many piles are there?
value: One of them costs # coins. How many coins do all of the {t} cost? | They are sold for # \
coins each. How many coins is that? | Each weighs # kilos. How many kilos is that in all?
over: # of the {t} are <dirty/old/wet>. How many {t} are clean and good? | Only # {t} can stay. \
How many must go?
under: There is room for # {t}. How many more can be brought? | # {t} are needed. How many are \
missing?
plus: There are # more {t} in the next room. How many {t} are there in all? | {m} has # {t} at \
home. How many {t} is that with them?

[living]
cast: t=people,children,birds,crows,ducks,cows,sheep,goats,women,men,boys,girls,guests,teachers,\
dogs,horses,hens,cats,geese,rabbits
cast: w=in a hall,in a park,at a show,on a hill,in a yard,at a lake,in a garden,on a bridge,at a \
market,in a field,on an island,by a river,near a mill,on a road,in a valley
plain: There are # {t} {w}. | # {t} <stand/wait/rest/are> {w}. | One can see # {t} {w}. | # {t} \
came to rest {w}.
late plain: Before that there were # {t} there. | At first there were #.
late product: Before that there were # groups of ## {t} there. | At first there were # rows of ## \
{t}.
late sum: Before that there were # <young/big/hungry> {t} and ## <old/small/tired> ones.
product: There are # groups of ## {t} {w}. | # farmers come with ## {t} each. | There are ## {t} \
in each of # rows {w}. | Each hour ## {t} come, and this goes on for # hours. | ## {t} come with \
each of # carts.
sum: There are # <young/big/hungry> {t} and ## <old/small/tired> ones {w}. | # {t} rest {w} and ## \
on the other side. | # {t} came yesterday and ## came today. | First # {t} come, then ## more.
gain: # more <come/arrive/join them>. | # other {t} <come/arrive>. | Then {m} <brings/sends> # \
more {t}. | Soon # new ones are there. | In the evening # {t} come back.
loss: # of them <leave/go home/go away/run away>. | # {t} <leave/go away/fall ill and leave>. | \
{m} takes # of them away. | At noon # of the {t} <leave/go home>. | A noise drives # of them away.
gains: # carts bring ## more {t} each. | # groups of ## {t} <arrive/join them>. | For # hours ## \
more come every hour.
losses: # groups of ## {t} leave. | # carts take away ## {t} each. | For # hours ## of them leave \
every hour.
half: Half of them <leave/go home/go away>. | Half of the {t} run away.
double: Soon there are twice as many. | As many again <come/arrive>.
now: How many {t} are there <now/then/in the end/after that>? | What is the number of {t} now? | \
How many {t} are there in all?
left: How many {t} are left? | How many {t} are still there? | How many {t} stay?
share: They stand in # equal rows. How many {t} are in each row? | They make # groups of the same \
size. How many {t} are in a group?
group: They form groups of #. How many groups are there? | # of them fit on one boat. How many \
boats are needed? | They go home in carts, # in a cart. How many carts are needed?
value: Each one gets # <nuts/apples/carrots>. How many do they get in all? | Each of them carries \
# kilos. How many kilos do they carry together?
over: # of the {t} are ill. How many are not ill? | # of them sit. How many {t} do not sit?
under: There is room for # {t}. How many more can come? | # {t} have a place. How many places are \
free?
plus: # others stand behind a wall. How many {t} are there in all? | # {t} are somewhere else. How \
many {t} is that in all?

[stuff]
cast: u l h k ks=litres|water|pool|bucket|buckets,litres|milk|pot|can|cans,\
litres|oil|barrel|jug|jugs,litres|juice|bowl|bottle|bottles,litres|soup|pot|cup|cups,\
litres|water|barrel|bucket|buckets,litres|wine|barrel|bottle|bottles,litres|water|tank|can|cans,\
kilos|rice|chest|sack|sacks,kilos|corn|cellar|basket|baskets,kilos|flour|bin|bag|bags,\
kilos|sand|cart|box|boxes,kilos|coal|shed|sack|sacks,kilos|corn|mill|bag|bags,\
kilos|salt|box|can|cans
plain: There are # {u} of {l} in a {h}. | A {h} has # {u} of {l} in it. | {S} keeps # {u} of {l} \
in a {h}. | {S} puts # {u} of {l} into an empty {h}.
product: {S} empties # {ks} of ## {u} each into a {h} for {l}. | Each day ## {u} of {l} come into \
an empty {h}, for # days. | {S} has # {ks} of {l}, and each holds ## {u}.
sum: {S} puts # {u} of {l} into an empty {h}, and {m} puts in ## {u}. | A {h} has # {u} of {l} in \
it, and another one has ## {u}. | {S} buys # {u} of {l} in one shop and ## {u} in another.
late plain: Before that there were # {u} of {l} in the {h}. | The {h} had # {u} in it before. | \
The {h} held # {u} of {l} at first.
late product: The {h} had been filled with # {ks} of ## {u} each.
gain: {S} adds # {u}. | {S} puts # {u} of {l} into the {h}. | {m} <brings/puts in/adds> # more \
{u}. | # {u} of {l} are added.
loss: {S} <uses/takes out/sells> # {u}. | {S} takes # {u} of {l} out of the {h}. | # {u} of {l} \
are <used/sold/lost>. | {m} <needs/takes/uses> # {u} of it. | A boy <uses/needs> # {u}.
gains: {S} adds # {ks} of ## {u} each. | For # hours {m} puts in ## {u} an hour. | Then ## {u} are \
added on each of # days.
half: {S} uses half of it. | Half of it is <lost/sold/bad>. | {m} takes half of the {l}.
double: {S} puts in as much again. | Then {m} doubles the amount.
now: How many {u} of {l} are there <now/then/in the end>? | How many {u} is that? | How much {l} \
is there now, in {u}?
left: How many {u} are left? | How many {u} of {l} remain? | How much {l} is left, in {u}?
share: # families get the same amount of it. How many {u} does each family get? | {S} puts it into \
# {ks}, the same amount into each. How many {u} are in one {k}?
group: # {u} are needed each day. For how many days is there enough? | {S} fills {ks} of # {u} \
with it. How many {ks} does {n} fill?
value: One of the {u} costs # coins. How many coins is that in all?
over: # {u} of it are bad. How many {u} are good? | {m} needs # {u}. How many {u} are too many?
under: There is room for # {u}. How many {u} can be added? | {S} needs # {u}. How many {u} are \
missing?

[money]
cast: t=coins
cast: o=lamp,hat,coat,drum,kite,book,map,chair,clock,ticket,knife,carpet,basket,ring
plain: {S} has # coins. | {S} has saved # coins. | In {his} pocket {n} has # coins. | {S} earned # \
coins last week. | {S} takes # coins to the market.
late plain: Before that {he} had #. | {He} had # coins at first.
late product: Before that {he} had sold # {t2} for ## coins each. | {He} had worked # hours for ## \
coins an hour.
late sum: Before that {he} had # coins in one pocket and ## coins in the other. | {He} had got # \
coins from a neighbour and ## coins from a friend.
product: {S} earns ## coins a day for # days. | {S} works # hours and gets ## coins an hour. | {S} \
sells # {t2} for ## coins each. | # people pay {n} ## coins each. | {S} saves ## coins a week for \
# weeks.
sum: {S} has # coins in one pocket and ## in the other. | {S} gets # coins from {m} and ## from a \
neighbour. | {S} sells a {o} for # coins and a stool for ## coins. | {S} earned # coins on Monday \
and ## on Tuesday.
gain: {S} <earns/finds/wins/gets/is paid> # coins more. | {m} <gives/pays/lends> {him} # coins. | \
{S} sells a {o} for # coins. | # coins come from {m}.
loss: {S} <pays/spends> # coins for a {o}. | {S} buys a {o} for # coins. | {S} <loses/gives \
away/spends> # of the coins. | A {o} costs # coins, and {S} buys it. | {S} pays {m} # coins.
gains: {S} earns ## coins a day for # days. | # people give {him} ## coins each. | {S} sells # \
{t2} for ## coins each.
losses: {S} buys # {t2} for ## coins each. | {S} gives ## coins to each of # children. | For # \
days {S} spends ## coins a day. | {S} buys # tickets, and one ticket costs ## coins.
half: {S} spends half of {his} money. | {m} gets half of the coins. | {S} loses half of them.
double: {m} gives {him} as much again. | {S} doubles {his} money.
now: How many coins does {n} have <now/then/in the end>? | How much money does {n} have now? | How \
many coins is that?
left: How many coins does {n} have left? | How many coins are left? | How much money remains?
share: {S} shares the money equally among # children. How many coins does each get? | {S} wants to \
spend it in # days, the same each day. How many coins is that a day?
group: A {o} costs # coins. How many can {n} buy with all the money? | {S} needs # coins a day. \
For how many days is that enough?
ratio: {m} has # times as much. How many coins does {m} have?
over: {m} has # coins. How many more coins does {n} have than {m}? | {S} must keep # coins. How \
many coins can {n} spend?
under: {S} wants a {o} that costs # coins. How many more coins does {n} need? | A {o} costs # \
coins. How many coins are missing?
plus: {m} has # coins more than that. How many coins does {m} have? | {m} has # coins. How much do \
they have together?

[way]
cast: u=miles,metres,kilometres
cast: go=walks,rides,runs,drives,goes
plain: {S} {go} # {u} in the morning. | On Monday {n} {go} # {u}. | {S} {go} # {u} to <a mill/a \
town/the sea/a lake>. | From a house to <a lake/a school/a market> it is # {u}, and {S} goes there.
product: {S} {go} ## {u} on each of # days. | {S} {go} round a field # times, and once round is ## \
{u}. | # times {S} {go} along a path of ## {u}.
sum: {S} {go} # {u} in the morning and ## in the evening. | {S} {go} # {u} to a bridge and then ## \
{u} to a hill. | {S} {go} # {u} before a rest and ## {u} after it.
gain: Then {S} goes # {u} <more/further>. | After a rest {S} goes another # {u}. | On the next day \
# {u} more are done.
gains: After that {S} goes ## {u} on each of # days. | Then {S} makes # trips of ## {u} each.
double: Then {S} goes the same way back. | After that {S} goes as far again.
now: How many {u} is that <in all/altogether>? | How far does {n} go in all, in {u}? | How many \
{u} does {n} go in all?
share: It takes # <days/hours>, the same number of {u} in each. How many {u} is that in one of them?
group: {S} rests after every # {u}, also at the end. How many rests is that? | Another day {n} \
goes only # {u} an hour on this way. How many hours does {n} need?
value: {S} does all this # times. How many {u} is that? | {S} does so every day for # days. How \
many {u} is that in all?
over: {m} goes # {u}. How many {u} does {n} go more than {m}? | # {u} of it were in the rain. How \
many {u} were not?
under: The whole way is # {u} long. How many {u} are left? | {S} wants to go # {u} in all. How \
many {u} are missing?
plus: {m} goes # {u} more than that. How many {u} does {m} go?

[work]
cast: u us=day|days,hour|hours,week|weeks,month|months
cast: t=baskets,pots,coats,hats,chairs,kites,lamps,shoes,candles,carpets,drums,toys,loaves,pies,\
bricks
plain: Every {u} {S} makes # {t}. | {S} makes # {t} every {u}. | # {t} are made each {u}.
sum: {S} makes # {t} every {u}, and {m} makes ##. | Every {u} {S} makes # <large/red> {t} and ## \
<small/blue> ones. | A man makes # {t} each {u}, and his son makes ## {t}.
repeat: This goes on for # {us}. | The work takes # {us}. | They do so for # {us}. | That is done \
for # {us}.
gain: A neighbour brings # more {t}. | Then # more are bought.
loss: # of the {t} are <sold/broken/given away/bad>. | Then {m} takes # of the {t}. | People buy # \
of them.
half: Half of the {t} are <sold/given away>. | {m} takes half of them.
now: How many {t} are there <now/then/in the end>? | How many {t} is that?
left: How many {t} are left? | How many {t} remain?
share: All of them are put into # {ks}, the same number in each. How many {t} are in each {k}? | # \
shops get an equal part of them. How many {t} does each shop get?
group: A {k} holds # {t}. How many {ks} are needed? | The {t} are put in rows of #. How many rows \
are there?
value: One of the {t} costs # coins. How many coins do all of them cost?
over: Only # {t} are needed. How many {t} are too many?
under: # {t} are wanted. How many {t} are missing?

[sizes]
cast: o1 o2 o3=goat|pig|horse,stone|log|chest,cat|dog|sheep,drum|clock|lamp,melon|pumpkin|cake,\
chair|table|bed,brick|plank|beam,bike|cart|boat,suitcase|trunk|bag
cast: is u=weighs|kilos,costs|coins,measures|centimetres
plain: A {o1} {is} # {u}. | There is a {o1} that {is} # {u}. | {n} has a {o1} that {is} # {u}.
gain: A {o2} {is} # {u} more than the {o1}. | The {o2} {is} # {u} more. | A {o2} {is} # {u} more.
loss: A {o2} {is} # {u} less than the {o1}. | The {o2} {is} # {u} less. | A {o2} {is} # {u} less.
half: A {o2} {is} half as much. | The {o2} {is} half as much as the {o1}.
double: A {o2} {is} twice as much. | The {o2} {is} twice as much as the {o1}.
mine: How many {u} is that for the {o2}? | What is the number of {u} for the {o2}?
both: How many {u} is that for the two together? | How many {u} is that in all? | How many {u} is \
that for the {o1} and the {o2}?
times: A {o3} {is} # times as much as the {o2}. How many {u} is that for the {o3}? | {m} takes # \
things like the {o2}. How many {u} is that?
plus: A {o3} {is} # {u} more than the {o2}. How many {u} is that for the {o3}?
less: A {o3} {is} # {u} less than the {o2}. How many {u} is that for the {o3}?

[ages]
plain: {n} is # years old. | {n} is #. | The age of {n} is # years. | {n} is now #.
gain: {m} is # years older. | {m} is # years older than {n}. | {m} was born # years before {n}.
loss: {m} is # years younger. | {m} is # years younger than {n}. | {m} was born # years after {n}.
half: {m} is half as old. | {m} is half as old as {n}.
double: {m} is twice as old. | {m} is twice as old as {n}.
mine: How old is {m}? | What is the age of {m}? | Work out the age of {m}.
both: How old are {n} and {m} together? | How old are the two of them together? | What is the sum \
of the two ages?
times: A tree is # times as old as {m}. How old is the tree?
plus: How old will {m} be in # years? | An uncle is # years older than {m}. How old is the uncle?
less: How old was {m} # years ago? | A cousin is # years younger than {m}. How old is the cousin?
"""

# Kinds and parts that would make a held-out template with other words.
HELD_OUT = """
stuff plain loss loss left
things plain half gain now
sizes plain gain mine
ages plain loss both
work sum repeat loss left
"""
EXTRA_THINGS = """
apples pears oranges cakes plums peaches cookies carrots buns nuts bananas melons biscuits pies eggs
stamps tickets baskets plates loaves jars bottles shoes ropes pencils towels coats drums combs
"""
